//! JSON patches (RFC 6902): changes of an object that come with what must be true before.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A JSON patch: all of it is done, or nothing.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JsonPatch(pub Vec<PatchOperation>);

/// One operation of a JSON patch, at a path of RFC 6901.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "lowercase")]
pub enum PatchOperation {
    /// The value there must be this one.
    Test {
        /// Where.
        path: String,
        /// The value.
        value: Value,
    },
    /// Sets a value of an object, or inserts one into a list.
    Add {
        /// Where.
        path: String,
        /// The value.
        value: Value,
    },
    /// Sets a value that is there.
    Replace {
        /// Where.
        path: String,
        /// The value.
        value: Value,
    },
    /// Removes a value that is there.
    Remove {
        /// Where.
        path: String,
    },
}

impl JsonPatch {
    /// A patch of the object that has this uid, and of no other of its name.
    pub fn of_uid(uid: &str) -> JsonPatch {
        JsonPatch::default().test(&["metadata", "uid"], uid)
    }

    /// With a test.
    #[must_use]
    pub fn test(mut self, path: &[&str], value: impl Into<Value>) -> JsonPatch {
        self.0.push(PatchOperation::Test { path: pointer(path), value: value.into() });
        self
    }

    /// With a value that is set, whether there is one or not.
    #[must_use]
    pub fn add(mut self, path: &[&str], value: impl Into<Value>) -> JsonPatch {
        self.0.push(PatchOperation::Add { path: pointer(path), value: value.into() });
        self
    }

    /// With a value that takes the place of one.
    #[must_use]
    pub fn replace(mut self, path: &[&str], value: impl Into<Value>) -> JsonPatch {
        self.0.push(PatchOperation::Replace { path: pointer(path), value: value.into() });
        self
    }

    /// With a value that is removed.
    #[must_use]
    pub fn remove(mut self, path: &[&str]) -> JsonPatch {
        self.0.push(PatchOperation::Remove { path: pointer(path) });
        self
    }
}

/// A path of RFC 6901: `/metadata/labels/proxyshift.dev~1mode`.
pub fn pointer(path: &[&str]) -> String {
    path.iter().map(|part| format!("/{}", part.replace('~', "~0").replace('/', "~1"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_is_a_list_of_operations() {
        let label = ["metadata", "labels", "proxyshift.dev/mode"];
        let patch = JsonPatch::of_uid("7").add(&label, "nftables").remove(&["a~b"]);
        assert_eq!(
            serde_json::to_string(&patch).unwrap(),
            r#"[{"op":"test","path":"/metadata/uid","value":"7"},{"op":"add","path":"/metadata/labels/proxyshift.dev~1mode","value":"nftables"},{"op":"remove","path":"/a~0b"}]"#
        );
    }
}
