//! Memory that is no longer needed goes back to the node.

/// Keeps glibc from holding on to what was freed. Left alone it takes larger and larger blocks from
/// its heap once a large one was freed, and makes a heap for each thread: a clean-up of 75,000 rules
/// then needs twice the memory (mallopt(3)). Does nothing with another libc.
#[cfg_attr(target_env = "gnu", expect(unsafe_code, reason = "no kept crate wraps mallopt"))]
pub fn give_back_early() {
    #[cfg(target_env = "gnu")]
    {
        use libc::{M_ARENA_MAX, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD};
        /// From this many bytes on, a block is mapped for itself, and gone when it is freed.
        const LARGE: libc::c_int = 128 * 1024;
        for (parameter, value) in
            [(M_MMAP_THRESHOLD, LARGE), (M_TRIM_THRESHOLD, LARGE), (M_ARENA_MAX, 1)]
        {
            // SAFETY: mallopt takes two numbers and keeps no pointer; no other thread runs yet. What
            // it does not take leaves all as it was.
            unsafe { libc::mallopt(parameter, value) };
        }
    }
}
