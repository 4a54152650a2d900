//! `ipvsadm -S -n`, and the listings beside it.
