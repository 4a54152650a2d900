//! Reads the source files of the program. Comments and strings are blanked, so that only code
//! counts.

use std::fs;
use std::path::{Path, PathBuf};

/// A source file without its comments and strings.
pub struct Source {
    /// The path of the file below `src`, such as `run/stage/mod.rs`.
    pub path: String,
    /// The code, with as many lines as the file has.
    pub code: String,
    pub lines: usize,
}

impl Source {
    /// The top module that the file belongs to, such as `run`.
    pub fn layer(&self) -> &str {
        self.path.split('/').next().unwrap_or_default().trim_end_matches(".rs")
    }

    /// How deep the module of the file is below the crate: `run/stage/mod.rs` is 2.
    pub fn depth(&self) -> usize {
        self.path.split('/').count() - usize::from(self.path.ends_with("/mod.rs"))
    }

    /// Every top module that the file names, with the line number. Names of the crate's root are
    /// returned as they are; they belong to no layer.
    pub fn imports(&self) -> Vec<(usize, String)> {
        let mut found = paths_after(&self.code, "crate::");
        for (at, up) in supers(&self.code) {
            let inside = inline_modules(&self.code, at);
            if self.depth() + inside == up {
                let end = at + up * "super::".len();
                found.extend(names_at(&self.code, end).into_iter().map(|name| (at, name)));
            }
        }
        let line = |at: usize| self.code[..at].matches('\n').count() + 1;
        found.into_iter().map(|(at, name)| (line(at), name)).collect()
    }
}

/// Every source file below `src`, sorted by path.
pub fn sources() -> Vec<Source> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    let mut folders = vec![src.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path: PathBuf = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                found.push(Source {
                    path: path.strip_prefix(&src).unwrap().to_str().unwrap().to_owned(),
                    lines: text.lines().count(),
                    code: code_only(&text),
                });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(found.len() > 20, "only {} files below {}", found.len(), src.display());
    found
}

/// `text` with comments and strings replaced by blanks; newlines are kept.
pub fn code_only(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let length = match c {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => rest.find("*/").map_or(rest.len(), |i| i + 2),
            '"' => string_length(rest),
            'r' if !code.ends_with(is_word) => raw_string_length(rest).unwrap_or(0),
            '\'' => char_length(rest).unwrap_or(0),
            _ => 0,
        };
        if length == 0 {
            code.push(c);
            rest = &rest[c.len_utf8()..];
        } else {
            code.extend(rest[..length].chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
            rest = &rest[length..];
        }
    }
    code
}

/// The length of the string literal with which `text` begins, both quotes included.
pub fn string_length(text: &str) -> usize {
    let mut escaped = false;
    for (i, c) in text.char_indices().skip(1) {
        match c {
            '"' if !escaped => return i + 1,
            '\\' => escaped = !escaped,
            _ => escaped = false,
        }
    }
    text.len()
}

/// The length of the raw string literal with which `text` begins; none if it begins with something
/// else.
pub fn raw_string_length(text: &str) -> Option<usize> {
    let hashes = text[1..].len() - text[1..].trim_start_matches('#').len();
    let start = 1 + hashes;
    text[start..].starts_with('"').then_some(())?;
    let end = format!("\"{}", "#".repeat(hashes));
    Some(text[start + 1..].find(&end).map_or(text.len(), |i| start + 1 + i + end.len()))
}

/// The length of the character literal with which `text` begins; none if that is a lifetime.
pub fn char_length(text: &str) -> Option<usize> {
    let mut chars = text.char_indices().skip(1);
    let (_, first) = chars.next()?;
    if first == '\\' {
        return text[3..].find('\'').map(|i| i + 4);
    }
    chars.next().filter(|(_, c)| *c == '\'').map(|(i, _)| i + 1)
}

pub fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The byte indexes at which `word` occurs in `code` as a whole word.
pub fn positions<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    code.match_indices(word).map(|(at, _)| at).filter(move |at| {
        let continues = word.ends_with(is_word) && code[at + word.len()..].starts_with(is_word);
        !code[..*at].ends_with(is_word) && !continues
    })
}

/// The names that follow each `prefix`, with their line numbers: one name, or all names of a list
/// in braces.
pub fn paths_after(code: &str, prefix: &str) -> Vec<(usize, String)> {
    positions(code, prefix)
        .flat_map(|at| names_at(code, at + prefix.len()).into_iter().map(move |name| (at, name)))
        .collect()
}

/// The name at the byte index `at`, or the first name of each path if a list in braces begins
/// there.
pub fn names_at(code: &str, at: usize) -> Vec<String> {
    let Some(list) = code[at..].strip_prefix('{') else {
        let name: String = code[at..].chars().take_while(|c| is_word(*c)).collect();
        // A star or a nested list is no name, so its first character is returned, which is no
        // layer.
        return vec![if name.is_empty() { code[at..].chars().take(1).collect() } else { name }];
    };
    let (mut depth, mut names, mut name) = (0, Vec::new(), Some(String::new()));
    for c in list.chars() {
        match c {
            '}' if depth == 0 => break,
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => names.extend(name.replace(String::new())),
            c if is_word(c) && depth == 0 => name.iter_mut().for_each(|n| n.push(c)),
            ':' if depth == 0 => names.extend(name.take()),
            _ => {}
        }
    }
    names.extend(name);
    names.retain(|n| !n.is_empty());
    names
}

/// The byte index of each run of `super::`, and how many there are in the run.
pub fn supers(code: &str) -> Vec<(usize, usize)> {
    let word = "super::";
    positions(code, word)
        .filter(|at| !code[..*at].ends_with("::"))
        .map(|at| {
            let ups = code.as_bytes()[at..].chunks(word.len());
            (at, ups.take_while(|chunk| *chunk == word.as_bytes()).count())
        })
        .collect()
}

/// How many inline modules enclose the byte index `at`. rustfmt closes each module at its own
/// indentation.
pub fn inline_modules(code: &str, at: usize) -> usize {
    let mut open: Vec<usize> = Vec::new();
    for line in code[..at].lines() {
        let bare = line.trim_start();
        let indent = line.len() - bare.len();
        if open.last() == Some(&indent) && bare.starts_with('}') {
            open.pop();
        }
        let words = bare.split_whitespace().skip_while(|w| w.starts_with("pub"));
        if words.take(1).eq(["mod"]) && bare.trim_end().ends_with('{') {
            open.push(indent);
        }
    }
    open.len()
}

/// A source file from a text, for tests of the code that reads source files.
pub fn made_up(path: &str, text: &str) -> Source {
    Source { path: path.into(), code: code_only(text), lines: text.lines().count() }
}
