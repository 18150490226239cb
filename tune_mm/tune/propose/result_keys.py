"""Keys of what a trial reports, beside its metrics: read by the searcher, the schedulers and the
callback.
"""

FINISHED_KEY = "finished"
FAILURE_KEY = "failure"
DIVERGED_KEY = "diverged"
OBJECTIVE_KEY = "objective"
NOTES_KEY = "notes"
PASSES_KEY = "passes"  # passes over the training data so far
SPENT_KEY = "spent"  # passes after each epoch, where they are not one per epoch
