"""The label tables of public sets, under the headers that they have, joined to files laid out as theirs are."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medclr.data.candidate import unnamed
from medclr.data.identity import Pseudonymiser
from medclr.data.image2d import header
from medclr.data.labels import check_labels, held_out, name_patients, read_labels
from medclr.data.layout import TableLayout, translate
from medclr.data.manifest import build_manifest
from medclr.data.spec import load_spec
from medclr.errors import DataError, UsageError

NAMES = Pseudonymiser(b"key")


def manifest_of(*paths, series=()):
    """Volumes of a file each, in the order given; `series` are their UIDs where they are DICOM."""
    found = [
        unnamed(path, reader="picture", paths=(path,), member=0, shape=(9, 9), spacing_mm=(1.0, 1.0), orientation="LI")
        for path in paths
    ]
    if series:
        found = [replace(one, series_uid=uid) for one, uid in zip(found, series, strict=True)]
    return build_manifest(found, NAMES)[0]


def joined(spec, folder, lines, manifest, label, name="table.csv"):
    """The label of each file by path, and the named manifest, as the commands join a table."""
    layout = load_spec(Path(spec)).table
    path = folder / name
    path.write_text("\n".join(lines) + "\n")
    named = name_patients(path, manifest, NAMES, layout)
    found = read_labels(path, named, NAMES, [label] if label else [], layout)
    return dict(zip(found.rows["source"].str[0], found.y[:, 0], strict=True)), named, found


NIH = [
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,OriginalImage[Width,"
    "Height],OriginalImagePixelSpacing[x,y],",
    "00000001_000.png,Cardiomegaly,0,1,57,M,PA,2682,2749,0.143,0.143,",
    "00000001_001.png,Pneumonia|Cardiomegaly,1,1,58,M,PA,2894,2729,0.143,0.143,",
    "00000002_000.png,No Finding,0,2,80,M,PA,2500,2048,0.171,0.171,",
    "00000003_000.png,Pleural_Thickening,0,3,80,M,PA,2500,2048,0.171,0.171,",
]


def test_nih_chestxray14_lists_its_findings_in_one_column(tmp_path):
    files = ["images_001/images/00000001_000.png", "images_001/images/00000001_001.png"]
    files += ["images_002/images/00000002_000.png", "images_002/images/00000003_000.png"]
    manifest = manifest_of(*files)
    y, named, found = joined("nih_chestxray14", tmp_path, NIH, manifest, "Cardiomegaly")
    assert y == dict(zip(files, [1, 1, 0, 0], strict=True))
    assert named["patient_key"].nunique() == 3
    assert named["patient_known"].all()
    assert found.unmatched_keys == ()
    y, _, _ = joined("nih_chestxray14", tmp_path, NIH, manifest, "Pneumonia")
    assert list(y.values()) == [0, 1, 0, 0]
    with pytest.raises(UsageError, match=r"15 columns may be the label; .*No Finding, Atelectasis.*Pneumothorax"):
        check_labels(tmp_path / "table.csv", [], load_spec(Path("nih_chestxray14")).table)


def test_under_a_spec_with_a_pattern_a_column_called_file_is_a_key_too(tmp_path):
    lines = ["file,tumour,patient_id", "elsewhere/a_000.png,1,7", "b_000.png,0,8"]
    y, named, found = joined("nih_chestxray14", tmp_path, lines, manifest_of("x/a_000.png", "x/b_000.png"), None)
    assert y == {"x/a_000.png": 1, "x/b_000.png": 0}
    assert found.key == "file"
    assert named["patient_known"].all()
    with pytest.raises(DataError, match="none of 2 patient_id values"):
        read_labels(tmp_path / "table.csv", manifest_of("x/a_000.png"), NAMES, ["tumour"])


def test_a_table_of_ones_own_is_read_as_ever_under_a_spec(tmp_path):
    lines = ["path,tumour", "x/a.png,1", "x/b.png,0"]
    y, _, found = joined("nih_chestxray14", tmp_path, lines, manifest_of("x/a.png", "x/b.png"), None)
    assert (list(y.values()), found.key) == ([1, 0], "path")
    (tmp_path / "none.csv").write_text("name,tumour\na,1\n")
    with pytest.raises(DataError, match=r"no key .*the spec's own is 'Image Index'"):
        check_labels(tmp_path / "none.csv", [], load_spec(Path("nih_chestxray14")).table)


OBSERVATIONS = (
    "No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,Edema,Consolidation,Pneumonia,"
    "Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices"
)


@pytest.mark.parametrize("root", ["", "CheXpert-v1.0-small/"])
def test_chexpert_has_blanks_and_uncertain_findings(tmp_path, root):
    rows = {"patient00001": ",1.0", "patient00002": "1.0,", "patient00003": ",-1.0", "patient00004": ",0.0"}
    images = {patient: f"train/{patient}/study1/view1_frontal.jpg" for patient in rows}
    lines = [f"Path,Sex,Age,Frontal/Lateral,AP/PA,{OBSERVATIONS}"]
    for patient, values in rows.items():
        nothing, edema = values.split(",")
        lines.append(f"CheXpert-v1.0-small/{images[patient]},Female,68,Frontal,AP,{nothing},,,,,{edema},,,,,,,,")
    lines.append(lines[1].replace("view1_frontal", "view2_lateral"))
    files = [root + image for image in images.values()] + [root + "train/patient00001/study1/view2_lateral.jpg"]
    y, named, _ = joined("chexpert", tmp_path, lines, manifest_of(*files), "Edema")
    assert y == {files[0]: 1, files[1]: 0, files[3]: 0, files[4]: 1}
    assert named["patient_key"].nunique() == 4
    y, _, _ = joined("chexpert", tmp_path, lines, manifest_of(*files), "No Finding")
    assert list(y.values()) == [0, 1, 0, 0, 0]
    lines[1] = lines[1].replace("1.0", "definitely")
    with pytest.raises(DataError, match=r"^table.csv: 1 cells of column 'Edema' are none of '1.0', .*\(first: row 2\)"):
        joined("chexpert", tmp_path, lines, manifest_of(*files), "Edema")


def test_mimic_cxr_labels_every_image_of_a_study(tmp_path):
    files = [
        f"files/p10/p1000003{n}/s5041426{s}/{image}.jpg" for n, s, image in ((2, 7, "a"), (2, 7, "b"), (3, 8, "c"))
    ]
    blanks = "," * 12
    lines = [f"subject_id,study_id,{OBSERVATIONS},split"]
    lines += [f"10000032,50414267,1.0{blanks},,train", f"10000033,50414268,{blanks},1.0,validate"]
    y, named, found = joined("mimic_cxr", tmp_path, lines, manifest_of(*files), "No Finding")
    assert y == dict(zip(files, [1, 1, 0], strict=True))
    assert named["patient_key"].nunique() == 2
    assert found.rows["split"].tolist() == ["train", "train", "val"]
    held = held_out(tmp_path / "table.csv", named, NAMES, load_spec(Path("mimic_cxr")).table)
    assert held.patients == {NAMES.pseudonym("patient", "10000033")}


def test_vindr_cxr_has_a_row_for_each_radiologist(tmp_path):
    lines = ["image_id,rad_id,Aortic enlargement,Pneumonia,Other diseases,No finding"]
    for image, votes in {"aa": "110", "bb": "100", "cc": "111"}.items():
        lines += [f"{image},R{n},0,{vote},0,0" for n, vote in enumerate(votes)]
    manifest = manifest_of(*[f"train/{image}.dicom" for image in ("aa", "bb", "cc")])
    y, _, _ = joined("vindr_cxr", tmp_path, lines, manifest, "Pneumonia")
    assert list(y.values()) == [1, 0, 1]


def test_rsna_pneumonia_has_a_row_for_each_box(tmp_path):
    lines = ["patientId,x,y,width,height,Target", "p1,264.0,152.0,213.0,379.0,1", "p1,562.0,152.0,256.0,453.0,1"]
    lines += ["p2,,,,,0"]
    manifest = manifest_of("stage_2_train_images/p1.dcm", "stage_2_train_images/p2.dcm")
    assert list(joined("rsna_pneumonia", tmp_path, lines, manifest, None)[0].values()) == [1, 0]


@pytest.mark.parametrize("spec", ["lidc_idri", "luna16"])
def test_luna16_has_a_row_for_each_candidate(tmp_path, spec):
    uids = [f"1.3.6.1.4.1.14519.5.2.1.6279.6001.{n}" for n in (11, 12)]
    lines = ["seriesuid,coordX,coordY,coordZ,class"]
    lines += [f"{uids[0]},-56.08,-67.85,-311.92,0", f"{uids[0]},53.21,-244.41,-245.17,1", f"{uids[1]},1,2,3,0"]
    files = ["a/1-001.dcm", "b/1-001.dcm"] if spec == "lidc_idri" else [f"subset0/{uid}.mhd" for uid in uids]
    y, _, _ = joined(spec, tmp_path, lines, manifest_of(*files, series=uids), None)
    assert list(y.values()) == [1, 0]


@pytest.mark.parametrize(
    ("source", "accepted"),
    [(("subset0/1.3.6.11.mhd", "subset0/1.3.6.11.raw"), True), (("1.3.6.11.mhd", "1.3.6.11.zraw"), True),
     (("1.3.6.11.nii.gz",), True), (("seg-lungs-LUNA16/1.3.6.11.mhd", "seg-lungs-LUNA16/1.3.6.11.zraw"), False),
     (("masks.mhd", "masks.raw"), False)],
)  # fmt: skip
def test_luna16_is_its_scans_without_the_masks_of_lungs(source, accepted):
    scan = unnamed(
        "1", reader="metaimage", paths=source, member=0, shape=(9,) * 3, spacing_mm=(1.0,) * 3, orientation="RAS"
    )
    assert load_spec(Path("luna16")).accepts(build_manifest([scan], NAMES)[0]).tolist() == [accepted]


@pytest.mark.parametrize(
    "files", [["train/00002/FLAIR/Image-1.dcm", "train/00003/T1w/Image-1.dcm"],
              ["BraTS2021_00002/BraTS2021_00002_t1.nii.gz", "BraTS2021_00003/BraTS2021_00003_t1.nii.gz"]]
)  # fmt: skip
def test_brats_by_the_folder_of_the_patient(tmp_path, files):
    lines = ["BraTS21ID,MGMT_value", "00002,1", "00003,0"]
    y, named, _ = joined("brats", tmp_path, lines, manifest_of(*files), None)
    assert list(y.values()) == [1, 0]
    assert named["patient_known"].all()


def test_adni_is_one_group_against_the_rest(tmp_path):
    lines = ["Image Data ID,Subject,Group,Sex,Age,Visit,Modality,Description,Type,Acq Date,Format,Downloaded"]
    rows = [("I118671", "941_S_1195", "CN"), ("I82251", "941_S_1195", "CN"), ("I63874", "011_S_0002", "AD")]
    lines += [f'"{i}","{s}","{g}","M","82","m48","MRI","MPR","Processed","6/09/2011","NiFTI",""' for i, s, g in rows]
    files = [f"ADNI/{s}/MPR/2008-05-01/{i}/ADNI_{s}_MR_S50000_{i}.nii" for i, s, _ in rows]
    y, named, _ = joined("adni", tmp_path, lines, manifest_of(*files), "AD")
    assert list(y.values()) == [0, 0, 1]
    assert named["patient_key"].nunique() == 2


def test_oasis_rates_dementia(tmp_path):
    lines = ["ID,M/F,Hand,Age,Educ,SES,MMSE,CDR,eTIV,nWBV,ASF,Delay"]
    ratings = {"OAS1_0001_MR1": "0", "OAS1_0003_MR1": "0.5", "OAS1_0009_MR1": "", "OAS1_0028_MR1": "1"}
    lines += [f"{session},F,R,74,2,3,29,{rating},1344,0.743,1.306,N/A" for session, rating in ratings.items()]
    files = [f"disc1/{session}/{session}_mpr.nii.gz" for session in ratings]
    y, named, found = joined("oasis", tmp_path, lines, manifest_of(*files), None)
    assert y == {files[0]: 0, files[1]: 1, files[3]: 1}
    assert found.task.name == "demented"
    assert NAMES.pseudonym("patient", "OAS1_0003") in set(named["patient_key"])


def test_ixi_numbers_its_people(tmp_path):
    lines = ['IXI_ID,"SEX_ID (1=m, 2=f)",HEIGHT,AGE', "2,2,164,35.8", "12,1,175,38.78", "13,0,0,46.71"]
    files = ["IXI002-Guys-0828-T1.nii.gz", "IXI012-HH-1211-T1.nii.gz", "IXI013-HH-1212-T1.nii.gz"]
    y, _, found = joined("ixi", tmp_path, lines, manifest_of(*files), None)
    assert (y, found.task.name) == ({files[0]: 1, files[1]: 0}, "female")


@pytest.mark.parametrize("ending", ["", ".nii.gz"])
def test_ct_rate_by_reconstruction(tmp_path, ending):
    lines = ["VolumeName,Medical material,Arterial wall calcification,Cardiomegaly"]
    lines += [f"train_1_a_1{ending},0,1,0", f"train_1_a_2{ending},0,1,0", f"valid_53_a_1{ending},0,0,1"]
    files = ["train_1/train_1_a/train_1_a_1.nii.gz", "train_1/train_1_a/train_1_a_2.nii.gz"]
    files += ["valid_53/valid_53_a/valid_53_a_1.nii.gz"]
    y, named, _ = joined("ct_rate", tmp_path, lines, manifest_of(*files), "Cardiomegaly")
    assert list(y.values()) == [0, 0, 1]
    assert named["patient_key"].nunique() == 2


def test_idc_by_series_and_any_label(tmp_path):
    lines = ["SeriesInstanceUID,PatientID,collection_id", "1.2,A,nlst", "1.3,B,tcga_luad"]
    y, named, _ = joined("idc_ct", tmp_path, lines, manifest_of("a", "b", series=["1.2", "1.3"]), None)
    assert y == {"a": 0, "b": 1}
    assert named["patient_known"].all()


def archive(path, labels):
    """A MedMNIST archive with these labels in each of its splits."""
    images = np.arange(len(labels) * 16, dtype=np.uint8).reshape(-1, 4, 4)
    splits = ("train", "val", "test")
    np.savez(path, **{f"{s}_images": images for s in splits}, **{f"{s}_labels": np.array(labels) for s in splits})
    return build_manifest(header(path, path.name), NAMES)[0]


@pytest.mark.parametrize(
    ("spec", "labels", "label", "expected"),
    [
        ("pneumoniamnist", [[0], [1], [1]], "pneumonia", [0, 1, 1]),
        ("breastmnist", [0, 1, 0], "normal, benign", [0, 1, 0]),
        ("octmnist", [[3], [0], [3]], "normal", [1, 0, 1]),
        ("chestmnist", [[0] * 14, [0] * 6 + [1] * 8, [1] + [0] * 13], "pneumonia", [0, 1, 0]),
        ("adrenalmnist3d", [[1], [0], [0]], "hyperplasia", [1, 0, 0]),
    ],
)
def test_a_medmnist_archive_is_its_own_label_table(tmp_path, spec, labels, label, expected):
    path = tmp_path / f"{spec}.npz"
    manifest = archive(path, labels)
    layout = load_spec(Path(spec)).table
    found = read_labels(path, manifest, NAMES, [label], layout)
    assert found.y[:, 0].tolist() == expected * 3
    assert found.rows["split"].tolist() == [split for split in ("train", "val", "test") for _ in expected]
    if len(layout.labels) == 2:
        assert read_labels(path, manifest, NAMES, [], layout).task.name == label
    assert load_spec(Path(spec)).files
    assert manifest["source"].map(lambda s: "mnist" in s[0]).all()


def test_an_archive_without_labels_is_one_line(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, train_images=np.zeros((2, 4, 4), np.uint8))
    with pytest.raises(DataError, match=r"^label table x.npz: no train_labels"):
        check_labels(path)
    for none in ([0.5, 1.0], np.zeros((0, 1), int), np.zeros((2, 0), int)):
        np.savez(path, train_labels=np.array(none))
        with pytest.raises(DataError, match=r"^label table x.npz: no train_labels"):
            check_labels(path)
    np.savez(path, train_labels=np.array([{"a": 1}], dtype=object))
    with pytest.raises(DataError, match=r"^label table x.npz: no readable NumPy archive"):
        check_labels(path)
    path.write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(DataError, match=r"^label table x.npz: no readable NumPy archive"):
        check_labels(path)


def test_rows_of_one_volume_count_together():
    rows = [("a", "1"), ("a", "0"), ("b", "0"), ("b", ""), ("c", ""), ("d", "0"), ("d", "1"), ("d", "0"), ("e", "1")]
    table = pd.DataFrame(rows, columns=["ID", "x"], index=range(2, 11))
    layout = TableLayout(key="ID", by="series_uid", labels={"x": "x"}, values={"1": "1", "0": "0", "": ""})
    counted = {
        rule: dict(translate(table, replace(layout, several=rule), "t")[["series_uid", "x"]].to_numpy().tolist())
        for rule in ("any", "majority")
    }
    assert counted["any"] == {"a": "1", "b": "0", "c": "", "d": "1", "e": "1"}
    assert counted["majority"] == {"a": "", "b": "0", "c": "", "d": "0", "e": "1"}


def test_a_table_with_the_key_but_no_label_of_the_spec(tmp_path):
    (tmp_path / "x.csv").write_text("study_id,subject_id,path_to\n1,2,3\n")
    with pytest.raises(DataError, match=r"^x.csv: it has the key 'study_id' of the spec, but no label column"):
        check_labels(tmp_path / "x.csv", [], load_spec(Path("mimic_cxr")).table)
