"""How good a model is, and whether another one is better.

metrics.py       retrieval metrics of embeddings
eval_set.py      a frozen set that one model after another is measured on
hold_out.py      which train documents are held out where no eval documents were given
fingerprints.py  which images look alike, by what is kept of each
copies.py        which of them are copies of one another
kinship.py       which documents belong together: sessions, groups, copies
intervals.py     how sure a mean over queries is, where queries rise and fall together
pairing.py       two versions on the same items
proof.py         the interval of a difference, and the verdict
label_errors.py  which documents probably have a wrong label, by their neighbours
map_fitting.py   the map between the spaces of two versions, learned from documents that both have embedded
index_plan.py    what to do with an index when the model changes
small_vector_scores.py  what shortened and encoded vectors lose

May import loading and what lies below it.
"""
