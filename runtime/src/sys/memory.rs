//! What the allocator keeps.

/// Gives the pages of freed memory back to the kernel (`malloc_trim(3)`). For long-lived processes, after work that is rare.
pub(crate) fn trim() {
    // SAFETY: takes no pointers and is safe at any time; only what nobody uses is given back.
    unsafe { libc::malloc_trim(0) };
}
