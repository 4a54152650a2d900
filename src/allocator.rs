//! Makes the C library return unused memory to the system.

/// Keeps glibc from holding on to freed memory. By default, once a large block was freed, glibc
/// takes ever larger blocks from its heap, and it makes several heaps for threads. A clean-up of
/// 75,000 rules then needs twice the memory (mallopt(3)). Does nothing with another C library.
#[cfg_attr(target_env = "gnu", expect(unsafe_code, reason = "no kept crate wraps mallopt"))]
pub fn return_memory_early() {
    #[cfg(target_env = "gnu")]
    {
        use libc::{M_ARENA_MAX, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD};
        /// Blocks of at least this size, in bytes, get a mapping of their own, which is unmapped
        /// when the block is freed.
        const LARGE: libc::c_int = 128 * 1024;
        for (parameter, value) in
            [(M_MMAP_THRESHOLD, LARGE), (M_TRIM_THRESHOLD, LARGE), (M_ARENA_MAX, 1)]
        {
            // SAFETY: mallopt takes two numbers and keeps no pointer, and no other thread runs yet.
            // A parameter that this glibc does not support changes nothing.
            unsafe { libc::mallopt(parameter, value) };
        }
    }
}
