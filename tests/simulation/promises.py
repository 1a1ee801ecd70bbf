"""The promises that the simulation checks, each with the number of the invariant that it is a case of.

docs/invariants.md has the list of invariants. A mutant names promises, and thereby cites their invariants.
"""

PROMISES = {
    "committed <= first unfinished": "I2",
    "commits go forward": "I3",
    "halted": "I5",
    "everything is committed in the end": "I6",
    "no overlap with itself": "I8",
    "handled once": "I8",
    "no commit after the end": "I11",
    "committed in time": "I12",
    "nothing is skipped by a reset": "I13",
    "records listed in metadata are not handled again": "I15",
    "committed before partitions go": "I17",
    "no record begins in a revoked partition": "I18",
    "order": "I19",
    "no overlap of a key": "I19",
    "slots": "I20",
    "the event loop gets its turn": "I21",
    "a member goes on polling": "I22",
    "a pause of the user's holds": "I23",
    "window": "I24",
    "attempts": "I25",
    "handled at least once": "I26",
    "the handler is called": "I26",
    "time limit": "I27",
    "committed by a clean stop": "I28",
    "a stop is bounded": "I29",
    "starts and stops end": "I29",
    "a process starts": "I29",
    "every process ends": "I29",
    "no record is left by a stop": "I29",
    "no task is left": "I29",
    "the singleton is reset": "I29",
    "the age of a record is reported": "I30",
    "a stalled partition is named": "I30",
    "no error goes unnoticed": "I31",
    "no traceback": "I31",
    "no acknowledged record is remembered": "I32",
}


def numbered(promise: str) -> str:
    """Return the text of a promise in violations: with the number of its invariant."""
    return f"{PROMISES[promise]} {promise}"
