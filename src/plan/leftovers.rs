//! Which objects are leftovers: those whose owner is gone, or no longer uses them.
