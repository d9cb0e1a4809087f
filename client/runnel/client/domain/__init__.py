"""What a client's work means, without input or output."""

from runnel.client.domain.cage import Cage
from runnel.client.domain.contract import Notes, TrainResult, ValidateResult, check_settings, read_notes

__all__ = ["Cage", "Notes", "TrainResult", "ValidateResult", "check_settings", "read_notes"]
