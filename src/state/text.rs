//! Stretches of a text that is kept once.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Deref;
use std::sync::Arc;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A text with several owners. A file of a node may be large: sharing it does not copy it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shared(Arc<String>);

impl Deref for Shared {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for Shared {
    fn as_ref(&self) -> &str {
        self
    }
}

impl fmt::Display for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self)
    }
}

impl From<String> for Shared {
    fn from(text: String) -> Shared {
        Shared(Arc::new(text))
    }
}

impl From<&str> for Shared {
    fn from(text: &str) -> Shared {
        Shared::from(text.to_owned())
    }
}

/// A stretch of a shared text: on a large node most rules are named in a plan, and a copy of each
/// would be a copy of the node. Equal, ordered and shown as the text it is.
#[derive(Clone)]
pub struct Text {
    whole: Shared,
    start: u32,
    end: u32,
}

impl Text {
    /// The bytes from `start` to `end`, both on character boundaries.
    pub(super) fn part(whole: &Shared, start: u32, end: u32) -> Text {
        Text { whole: whole.clone(), start, end }
    }

    /// No text, which shares what this one shares.
    pub fn empty(&self) -> Text {
        Text { whole: self.whole.clone(), start: 0, end: 0 }
    }

    /// The text itself.
    pub fn as_str(&self) -> &str {
        &self.whole[self.start as usize..self.end as usize]
    }
}

impl Deref for Text {
    type Target = str;

    fn deref(&self) -> &str {
        self.as_str()
    }
}

impl From<String> for Text {
    /// All of `text`: a rule or a name, nothing near the 4 GiB that it can be at most.
    fn from(text: String) -> Text {
        let end = u32::try_from(text.len()).unwrap_or(0);
        Text { whole: text.into(), start: 0, end }
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Text {
        Text::from(text.to_owned())
    }
}

impl Default for Text {
    fn default() -> Text {
        Text::from("")
    }
}

impl PartialEq for Text {
    fn eq(&self, other: &Text) -> bool {
        **self == **other
    }
}

impl Eq for Text {}

impl<T: AsRef<str>> PartialEq<T> for Text {
    fn eq(&self, other: &T) -> bool {
        **self == *other.as_ref()
    }
}

impl PartialEq<Text> for String {
    fn eq(&self, other: &Text) -> bool {
        **self == **other
    }
}

impl PartialOrd for Text {
    fn partial_cmp(&self, other: &Text) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Text {
    fn cmp(&self, other: &Text) -> std::cmp::Ordering {
        (**self).cmp(&**other)
    }
}

impl Hash for Text {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (**self).hash(state);
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&**self, f)
    }
}

impl Serialize for Text {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self)
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Text, D::Error> {
        String::deserialize(deserializer).map(Text::from)
    }
}

/// Reads a list of texts as stretches of one: many small texts take more room than they hold.
///
/// # Errors
/// The deserializer's own.
pub fn together<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Text>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    let whole = Shared::from(texts.concat());
    let mut start = 0;
    let stretch = |text: &String| {
        let end = start + text.len();
        let part = u32::try_from(start).and_then(|s| Ok((s, u32::try_from(end)?)));
        start = end;
        part.map(|(start, end)| Text::part(&whole, start, end)).map_err(D::Error::custom)
    };
    texts.iter().map(stretch).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stretch_is_the_text_it_shows() {
        let whole = Shared::from("one two");
        let two = Text::part(&whole, 4, 7);
        assert_eq!((&*two, two.len()), ("two", 3));
        assert_eq!(two, Text::from("two"));
        assert!(Text::part(&whole, 0, 3) < two);
        let json = serde_json::to_string(&two).unwrap();
        assert_eq!((json.as_str(), format!("{two:?} {two}")), ("\"two\"", "\"two\" two".into()));
        assert_eq!(serde_json::from_str::<Text>(&json).unwrap(), two);
    }
}
