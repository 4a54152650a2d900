//! Parses and renders YAML. No other module does, so that the crate that does the work can be
//! replaced.
//!
//! Parses only proxyshift's own formats and configuration files of limited size.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Kind, Result};

/// The largest document that is parsed, in bytes. Configuration files have a few KiB.
const LIMIT: usize = 64 << 10;

/// How many `[` and `{` a document may have. The parser takes a time that grows with the square of
/// their depth: 20,000 take 2 s. Whether they are nested, quoted or closed is not looked at, because
/// only the parser knows.
const BRACKETS: usize = 2048;

/// A YAML document of any shape.
pub type Value = serde_yaml::Value;

/// Parses one document into `T`. `name` is the file's name; errors give it and the line.
pub fn parse<T: DeserializeOwned>(name: &str, text: &str) -> Result<T> {
    affordable(name, text)?;
    serde_yaml::from_str(text).map_err(|e| Error::new(Kind::Parse, name, e))
}

/// As [`parse`], with the path of each field that `T` does not use: its keys, from the top.
pub fn parse_with_unused<T: DeserializeOwned>(
    name: &str,
    text: &str,
) -> Result<(T, Vec<Vec<String>>)> {
    affordable(name, text)?;
    let mut unused = Vec::new();
    let document = serde_yaml::Deserializer::from_str(text);
    let value = serde_ignored::deserialize(document, |path| unused.push(keys(&path)));
    value.map(|value| (value, unused)).map_err(|e| Error::new(Kind::Parse, name, e))
}

/// The keys of a path, from the top; the place in a list is its number.
fn keys(path: &serde_ignored::Path<'_>) -> Vec<String> {
    use serde_ignored::Path;
    match path {
        Path::Root => Vec::new(),
        Path::Seq { parent, index } => [keys(parent), vec![index.to_string()]].concat(),
        Path::Map { parent, key } => [keys(parent), vec![key.clone()]].concat(),
        Path::Some { parent }
        | Path::NewtypeStruct { parent }
        | Path::NewtypeVariant { parent } => keys(parent),
    }
}

/// Refuses a document that would take long to parse.
fn affordable(name: &str, text: &str) -> Result<()> {
    let refused = |cause: String| Err(Error::new(Kind::Parse, name, cause));
    if text.len() > LIMIT {
        return refused(format!("larger than {LIMIT} bytes"));
    }
    if text.bytes().filter(|b| matches!(b, b'[' | b'{')).count() > BRACKETS {
        return refused(format!("more than {BRACKETS} brackets"));
    }
    Ok(())
}

/// Renders one document. `name` is the file's name, for errors.
pub fn render<T: Serialize>(name: &str, value: &T) -> Result<String> {
    serde_yaml::to_string(value).map_err(|e| Error::new(Kind::Unexpected, name, e))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    /// Each is as long as a document may be, and made to keep the parser busy.
    #[test]
    fn no_document_takes_long() {
        let anchors: String = (0..4000).map(|n| format!("- &a{n} x\n- *a{n}\n")).collect();
        let bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n".to_owned()
            + &(1..9)
                .map(|n| {
                    let (new, old) = (char::from(b'a' + n), char::from(b'a' + n - 1));
                    format!("{new}: &{new} [{}]\n", vec![format!("*{old}"); 9].join(","))
                })
                .collect::<String>();
        let endless = [
            "[", "{", "- ", "? ", "a: ", "- - ", "\"", "'", "|\n", "&a ", "*a ", "!a ", "---\n",
            "#", "%", "[{", "{a: [", "]", "\t", "\n ", "a:\n ", "?\n", "\\", "<<: ", "!!", "a\n",
            "- a\n", "\"\\\n",
        ];
        let documents = endless.map(|part| part.repeat(LIMIT / part.len()));
        let nested: String = (0..350).map(|n| " ".repeat(n) + "a:\n").collect();
        for text in documents.into_iter().chain([anchors, bomb, nested]) {
            let begun = Instant::now();
            let _ = parse::<Value>("test", &text);
            let took = begun.elapsed();
            assert!(took < Duration::from_secs(2), "{took:?} for {:?}", &text[..9]);
        }
    }

    #[test]
    fn unused_fields_are_named() {
        #[derive(serde::Deserialize)]
        struct Inner {
            #[allow(dead_code)]
            used: u8,
        }
        #[derive(serde::Deserialize)]
        struct Outer {
            #[allow(dead_code)]
            inner: Option<Inner>,
        }
        let text = "inner: {used: 1, more: {a: 2}}\nother: [3]\n";
        let (_, unused) = parse_with_unused::<Outer>("test", text).unwrap();
        assert_eq!(unused, [vec!["inner".to_owned(), "more".into()], vec!["other".to_owned()]]);
    }
}
