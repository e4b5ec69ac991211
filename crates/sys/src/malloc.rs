//! The allocator's memory: giving back to the system what the program has freed.

/// Makes the heap grow in larger steps, and all threads share one: a server's threads hand memory on to each other, and a heap
/// for each only spreads what little stays in use (mallopt(3)). To be called before there are threads. Does nothing where the C
/// library is not glibc.
pub fn share_one_heap() {
    #[cfg(target_env = "gnu")]
    {
        const STEP: libc::c_int = 1 << 20;
        // SAFETY: both calls only set parameters of the allocator; a refusal (0) leaves the default, which works as well.
        unsafe {
            libc::mallopt(libc::M_ARENA_MAX, 1);
            libc::mallopt(libc::M_TOP_PAD, STEP);
        }
    }
}

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
