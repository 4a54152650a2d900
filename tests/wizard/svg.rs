//! The screen of a terminal as an SVG picture, for the README.

use std::fmt::Write;
use std::path::Path;

use vt100::{Cell, Color, Screen};

/// The width and height of a character cell, in pixels.
const CELL: (f32, f32) = (8.4, 18.0);
const MARGIN: f32 = 16.0;
const BACKGROUND: &str = "#14171c";
const FOREGROUND: &str = "#d6dae0";

/// The screen as an SVG, light on dark, in any monospaced font.
pub fn render(screen: &Screen) -> String {
    let (rows, columns) = size(screen);
    let used = (0..rows).rev().find(|row| !text(screen, *row).is_empty()).map_or(1, |row| row + 1);
    let width = f32::from(columns) * CELL.0 + 2.0 * MARGIN;
    let height = f32::from(used) * CELL.1 + 2.0 * MARGIN;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" \
         font-family=\"ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace\" \
         font-size=\"14\" xml:space=\"preserve\">\n\
         <rect width=\"100%\" height=\"100%\" rx=\"8\" fill=\"{BACKGROUND}\"/>\n"
    );
    for row in 0..used {
        let y = MARGIN + f32::from(row) * CELL.1 + 13.5;
        let mut column = 0;
        while column < columns {
            let style = style(screen.cell(row, column));
            let start = column;
            let mut run = String::new();
            while column < columns && self::style(screen.cell(row, column)) == style {
                let cell = screen.cell(row, column);
                let contents = cell.map(Cell::contents).filter(|contents| !contents.is_empty());
                run.push_str(contents.unwrap_or(" "));
                column += 1;
            }
            let run = run.trim_end();
            let blanks = run.len() - run.trim_start().len();
            if run.trim().is_empty() {
                continue;
            }
            let x = MARGIN + f32::from(start + u16::try_from(blanks).unwrap_or(0)) * CELL.0;
            let run = run.trim_start();
            let length = run.chars().count() as f32 * CELL.0;
            let escaped = run.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
            // Writing to a String cannot fail, so the result is ignored.
            let _ = writeln!(
                svg,
                "<text x=\"{x:.1}\" y=\"{y:.1}\" textLength=\"{length:.1}\"{style}>{escaped}</text>"
            );
        }
    }
    svg + "</svg>\n"
}

/// How many rows and columns the screen has.
fn size(screen: &Screen) -> (u16, u16) {
    let (rows, columns) = screen.size();
    (rows.get(), columns.get())
}

/// The text in a row of the screen.
fn text(screen: &Screen, row: u16) -> String {
    let (_, columns) = size(screen);
    screen.rows(0, columns).nth(row.into()).unwrap_or_default().trim_end().to_owned()
}

fn style(cell: Option<&Cell>) -> String {
    let Some(cell) = cell else { return String::new() };
    let fill = match cell.fgcolor() {
        Color::Default if cell.dim() => "#7c8590",
        Color::Idx(0 | 8) => "#7c8590",
        Color::Idx(1 | 9) => "#ff7b72",
        Color::Idx(2 | 10) => "#7ee787",
        Color::Idx(3 | 11) => "#e3b341",
        Color::Idx(4 | 12) => "#79c0ff",
        Color::Idx(5 | 13) => "#d2a8ff",
        Color::Idx(6 | 14) => "#76e3ea",
        _ => FOREGROUND,
    };
    let weight = if cell.bold() { " font-weight=\"bold\"" } else { "" };
    format!(" fill=\"{fill}\"{weight}")
}

/// Writes the picture when `make readme` asks for it. Otherwise compares only the wizard's
/// questions with those in the existing picture, because the findings differ from kernel to kernel.
pub fn write_or_compare(screen: &Screen) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/wizard.svg");
    let picture = render(screen);
    if std::env::var_os("PROXYSHIFT_WRITE_README").is_some() {
        return std::fs::write(&path, picture).expect("the picture is written");
    }
    let shown = questions(&std::fs::read_to_string(&path).expect("docs/wizard.svg"));
    assert!(shown.len() > 5, "{shown:?}");
    assert_eq!(
        shown,
        questions(&picture),
        "docs/wizard.svg is not current; `make readme` writes it"
    );
}

/// The questions in a picture and what each answer does, with each digit replaced by 0.
fn questions(picture: &str) -> Vec<String> {
    let text = |line: &str| {
        let text = line.rsplit_once("</text>")?.0.split_once('>')?.1;
        Some(text.replace(|c: char| c.is_ascii_digit(), "0"))
    };
    let printed = |l: &String| l.ends_with('?') || l.starts_with("yes: ") || l.starts_with("no: ");
    picture.lines().filter_map(text).filter(printed).collect()
}
