"""What can go wrong, and the exit code that says so."""

REASONS = {
    "NOT_DICOM": "a file named or shaped like DICOM that pydicom cannot parse",
    "NOT_AN_IMAGE": "a file, or a DICOM object, that holds no image (text, report, structure set)",
    "OTHER_KIND": "a volume of another modality or other dimensions than the spec is for",
    "UNSUPPORTED": "an image of a kind that medclr does not read yet",
    "NO_GEOMETRY": "no position, orientation or spacing to build a volume from",
    "NONUNIFORM": "slices missing, unevenly spaced, or of different shape or orientation",
    "GANTRY_TILT": "slices sheared against their normal by a tilted gantry",
    "DUPLICATE": "a copy of another image, or several at one position that nothing tells apart",
    "UID_COLLISION": "an instance UID that images of another patient have, too",
    "TRUNCATED": "the file ends before its pixels do",
    "DECODE": "the pixels cannot be decoded, or their decoder is not installed",
    "COLOUR": "a colour image",
    "BURNED_IN": "burned-in annotation or a secondary capture, which may show a name",
    "NOT_FINITE": "no finite value, or a single value everywhere",
    "TOO_LARGE": "the header claims more than medclr is willing to allocate",
    "UNREADABLE": "the file cannot be opened or read",
}


class MedclrError(Exception):
    """A failure with a message for the user: the thing, the value and the fix, in one line."""

    exit_code = 1


class UsageError(MedclrError):
    """A flag, configuration or combination of them that cannot be meant."""

    exit_code = 2


class DataError(MedclrError):
    """Input without anything usable in it."""


class LeakageError(MedclrError):
    """A patient, or an image, on both sides of a split or in pre-training and test."""


class BundleError(MedclrError):
    """An encoder bundle that is damaged, or does not fit what is asked of it."""


class TooManySkipped(MedclrError):
    """The command did its work, but skipped more than the user allows."""

    exit_code = 3


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
    """SIGINT or SIGTERM. Not an Exception, so that nothing on the way up mistakes it for a bad item."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum

    @property
    def exit_code(self) -> int:
        return 128 + self.signum
