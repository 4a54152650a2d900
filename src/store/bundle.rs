//! The form of a bundle: one archive about a node, made for a report of a bug. It has the folder
//! [`SNAPSHOT`] with what was captured, and beside it what was judged.
//!
//! A bundle is read, and nothing more: it has no manifest, so nothing is rolled back to it, and it
//! cannot be imported.

use serde::Deserialize;

use super::disk::{Tree, refused};
use crate::error::{Error, Kind, LONGEST_CAUSE, LONGEST_NAME, Result, shortened};

/// The file that makes a folder a bundle: what the bundle is about, as JSON.
pub const BUNDLE: &str = "bundle.json";

/// The folder of what was captured.
pub const SNAPSHOT: &str = "snapshot";

/// Beside the captured files: why a part of the node could not be captured, as JSON. What has this file
/// is no whole node.
pub const UNREAD: &str = "unread.json";

/// The version of the form.
pub const VERSION: u32 = 1;

/// Whether these are the files of a bundle.
pub(super) fn is_bundle(tree: &Tree) -> bool {
    tree.contains_key(BUNDLE)
}

/// The captured files of the bundle `tree`. Errors call it `name`.
///
/// # Errors
/// [`Kind::SnapshotRefused`](crate::error::Kind::SnapshotRefused) for a bundle of a later version.
pub(super) fn captured(name: &str, tree: Tree) -> Result<Tree> {
    #[derive(Deserialize)]
    struct Header {
        version: u32,
    }
    let object = || format!("{name}/{BUNDLE}");
    let json = tree.get(BUNDLE).map_or(&[][..], Vec::as_slice);
    let header: Header = serde_json::from_slice(json).map_err(|e| refused(object(), e))?;
    if header.version > VERSION {
        let cause = format!("of a newer proxyshift (version {})", header.version);
        return Err(refused(object(), cause));
    }
    let folder = format!("{SNAPSHOT}/");
    let below = |path: &str| path.strip_prefix(&folder).map(str::to_owned);
    Ok(tree.into_iter().filter_map(|(path, bytes)| Some((below(&path)?, bytes))).collect())
}

/// Why a part of a node could not be captured, if the files `tree` say so. Takes the file out that says
/// it.
///
/// # Errors
/// [`Kind::SnapshotRefused`](crate::error::Kind::SnapshotRefused) if it cannot be read.
pub(super) fn take_unread(name: &str, tree: &mut Tree) -> Result<Option<Error>> {
    let Some(json) = tree.remove(UNREAD) else { return Ok(None) };
    let unread: Error =
        serde_json::from_slice(&json).map_err(|e| refused(format!("{name}/{UNREAD}"), e))?;
    // Whoever made the bundle chose these words, so they choose neither the exit code nor a next step.
    let object = shortened(&unread.object, LONGEST_NAME);
    let cause = format!("not captured on that node: {}", shortened(&unread.cause, LONGEST_CAUSE));
    Ok(Some(
        Error::new(Kind::LossyCapture, object, cause)
            .hint("`check` judges what needs no rules; errors.txt of the bundle says more"),
    ))
}
