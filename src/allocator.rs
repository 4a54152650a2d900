//! Returns unused memory to the node.

/// Keeps glibc from holding freed memory. By default glibc takes larger and larger blocks from its
/// heap once a large block was freed, and makes one heap a thread: a clean-up of 75,000 rules then
/// needs twice the memory (mallopt(3)). Does nothing with another libc.
#[cfg_attr(target_env = "gnu", expect(unsafe_code, reason = "no kept crate wraps mallopt"))]
pub fn return_memory_early() {
    #[cfg(target_env = "gnu")]
    {
        use libc::{M_ARENA_MAX, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD};
        /// The size in bytes from which a block gets its own mapping, which is unmapped when the
        /// block is freed.
        const LARGE: libc::c_int = 128 * 1024;
        for (parameter, value) in
            [(M_MMAP_THRESHOLD, LARGE), (M_TRIM_THRESHOLD, LARGE), (M_ARENA_MAX, 1)]
        {
            // SAFETY: mallopt takes two numbers and keeps no pointer; no other thread runs yet. An
            // unsupported parameter changes nothing.
            unsafe { libc::mallopt(parameter, value) };
        }
    }
}
