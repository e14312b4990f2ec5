//! The bytes of a leased block where they lie.

use crate::lease::Lease;

impl Lease {
    /// Returns the bytes of the block where they lie, in order: one slice, unless the node's memory was
    /// scattered. No copy is made.
    ///
    /// # Safety
    /// Another process changes these bytes once the lease has ended. While it has the slices, the
    /// caller treats them as bytes that may be anything at any time (no `str`, no enum, no bounds
    /// derived twice), and uses nothing that was derived from them unless [`Lease::holds`] is true
    /// **afterwards**.
    #[expect(unsafe_code, reason = "the caller promises what a lease cannot enforce")]
    pub unsafe fn slices(&self) -> impl Iterator<Item = &[u8]> {
        let (attachment, extents) = self.place();
        extents.iter().map(|extent| {
            // SAFETY: the caller's promise is that of `bytes`.
            unsafe { attachment.memory.bytes(extent) }
        })
    }
}
