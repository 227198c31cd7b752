"""What can go wrong, and the exit code that says so."""

import signal
from typing import NamedTuple


class Reason(NamedTuple):
    """Why an item is skipped, and what its owner can do about it; both without a full stop."""

    cause: str
    cure: str


REASONS = {
    "NOT_DICOM": Reason(
        "named or shaped like DICOM, but cannot be parsed",
        "copy it again from the archive",
    ),
    "NOT_AN_IMAGE": Reason(
        "no image: text, a report, a structure set",
        "nothing",
    ),
    "OTHER_KIND": Reason(
        "a volume of another modality or other dimensions than the spec is for",
        "prepare it with another `--spec`, in a run of its own",
    ),
    "UNSUPPORTED": Reason(
        "an image of a format or kind that medclr does not read (frames without positions, vectors, MINC, …)",
        "convert it to NIfTI",
    ),
    "NO_GEOMETRY": Reason(
        "no position, orientation or spacing to build a volume from",
        "export it again with the complete header",
    ),
    "NONUNIFORM": Reason(
        "slices missing, unevenly spaced, or of different shape or orientation",
        "fetch the missing slices, or split the series; `--uneven resample` interpolates uneven ones",
    ),
    "GANTRY_TILT": Reason(
        "slices sheared by a tilted gantry, under `--tilt skip`",
        "`--tilt correct` shears them upright",
    ),
    "DUPLICATE": Reason(
        "a copy of another image, or several at one position that nothing tells apart",
        "nothing for a copy; else split the series",
    ),
    "UID_COLLISION": Reason(
        "images of two patients have the same instance UID, so whose they are cannot be told",
        "de-identify again, with a UID of its own for each image",
    ),
    "TRUNCATED": Reason(
        "the file ends before its pixels do",
        "copy it again from the archive",
    ),
    "DECODE": Reason(
        "the pixels cannot be decoded, or their decoder is not installed",
        "`medclr doctor` lists the decoders: install the missing one; else copy the file again",
    ),
    "COLOUR": Reason(
        "a colour image",
        "if it is grey but for a caption, as ultrasound often is: save it with one sample a pixel, or as a grey PNG",
    ),
    "BURNED_IN": Reason(
        "burned-in annotation or a secondary capture, which may show a name",
        "`--burned-in` keeps it, if you know it to be clean",
    ),
    "NOT_FINITE": Reason(
        "no finite value, or a single value everywhere",
        "look at the image where it came from",
    ),
    "TOO_LARGE": Reason(
        "the header claims more than medclr is willing to allocate",
        "look at the header: its sizes are probably wrong",
    ),
    "UNREADABLE": Reason(
        "cannot be opened: no permission, or a link that leads out of the folder or nowhere",
        "change the permission, or scan what the link points to",
    ),
}


class MedclrError(Exception):
    """A failure with a message for the user: the thing, the value and the fix, in one line."""

    exit_code = 1


class UsageError(MedclrError):
    """A flag, configuration or combination of them that cannot be meant."""

    exit_code = 2


class DataError(MedclrError):
    """Input without anything usable in it."""

    def __init__(self, message: str) -> None:
        # Where a loader process raised it, torch puts that one's traceback before the message.
        super().__init__(message.rpartition(f"{__name__}.{type(self).__name__}: ")[2].strip())


class LeakageError(MedclrError):
    """A patient, or an image, on both sides of a split or in pre-training and test."""


class BundleError(MedclrError):
    """An encoder bundle that is damaged, or does not fit what is asked of it."""


class TooManySkipped(MedclrError):
    """The command did its work, but skipped more than the user allows."""

    exit_code = 3


class Elsewhere(MedclrError):
    """Another process of this run has failed, or was told to stop, and says so: this one ends without a word."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("another process of this run has ended")
        self.exit_code = exit_code


class Unreadable(MedclrError):
    """One item that cannot become a volume: a reason code of REASONS and one line."""

    def __init__(self, reason: str, message: str) -> None:
        if reason not in REASONS:
            raise KeyError(reason)
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type["Unreadable"], tuple[str, str]]:
        # Exceptions pickle by their args; worker processes send this one home.
        return type(self), (self.reason, str(self))


class Interrupted(BaseException):
    """SIGINT, SIGTERM or SIGUSR1. Not an Exception, so that nothing on the way up mistakes it for a bad item."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum

    @property
    def exit_code(self) -> int:
        """As the shell has it; SIGUSR1 is a scheduler's word for what SIGTERM says."""
        return 128 + (signal.SIGINT if self.signum == signal.SIGINT else signal.SIGTERM)
