//! Finds how much space is free for the store.

use std::path::Path;

use crate::runtime::free_bytes;

/// The bytes that root may still use in the file system of `directory`, which may not exist yet.
pub(super) fn free(directory: &Path) -> Option<u64> {
    let there = directory.ancestors().find(|d| d.exists())?;
    free_bytes(there).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_to_be_made_has_the_room_of_its_parent() {
        let dir = tempfile::tempdir().unwrap();
        assert!(free(&dir.path().join("not/yet")).unwrap() > 0);
        assert!(!dir.path().join("not").exists());
        assert_eq!(free(Path::new("")), None);
    }
}
