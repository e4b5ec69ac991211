//! The allocator's memory: giving back to the system what the program has freed.

/// Returns free memory at the top and within the heap to the system (malloc_trim(3)); whether any was returned. Does
/// nothing where the C library is not glibc.
pub fn trim() -> bool {
    #[cfg(target_env = "gnu")]
    // SAFETY: the call is thread-safe and has no precondition.
    let returned = unsafe { libc::malloc_trim(0) } != 0;
    #[cfg(not(target_env = "gnu"))]
    let returned = false;
    returned
}
