//! A page of Markdown, split into code and prose.

/// Kind of a piece of text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Text between backticks.
    Span,
    /// A line of a fenced block.
    Fence,
    /// The rest of a line, without spans.
    Prose,
}

/// A piece of a page.
#[derive(Debug, Clone)]
pub(crate) struct Piece {
    /// Line number, from 1.
    pub(crate) line: usize,
    pub(crate) kind: Kind,
    pub(crate) text: String,
    /// Whether it is in a section about planned things, which may name what does not exist.
    pub(crate) planned: bool,
}

/// A parsed page.
#[derive(Debug)]
pub(crate) struct Page {
    /// Path from the root of the repository.
    pub(crate) path: String,
    pub(crate) pieces: Vec<Piece>,
    /// Line and target of every link.
    pub(crate) links: Vec<(usize, String)>,
    /// Anchors of the headings, as GitHub generates them.
    pub(crate) anchors: Vec<String>,
}

/// Headings of sections about planned things.
const PLANNED: [&str; 2] = ["Not yet", "Not there yet"];

impl Page {
    pub(crate) fn parse(path: &str, text: &str) -> Self {
        let mut page = Self { path: path.to_owned(), pieces: Vec::new(), links: Vec::new(), anchors: Vec::new() };
        let (mut fenced, mut planned) = (false, None);
        // A span may continue on the next line, so lines are collected until the paragraph ends.
        let mut paragraph: Vec<(usize, &str)> = Vec::new();
        for (line, text) in (1..).zip(text.lines()) {
            if text.trim_start().starts_with("```") {
                page.paragraph(&mut paragraph, planned.is_some());
                fenced = !fenced;
            } else if fenced {
                page.push(line, Kind::Fence, text, planned.is_some());
            } else if let Some((level, title)) = heading(text) {
                page.paragraph(&mut paragraph, planned.is_some());
                page.anchors.push(slug(title));
                if planned.is_some_and(|planned| level <= planned) {
                    planned = None;
                }
                if PLANNED.contains(&title) {
                    planned = Some(level);
                }
            } else if text.trim().is_empty() || text.starts_with('|') {
                page.paragraph(&mut paragraph, planned.is_some());
                paragraph.push((line, text));
                page.paragraph(&mut paragraph, planned.is_some());
            } else {
                paragraph.push((line, text));
            }
        }
        page.paragraph(&mut paragraph, planned.is_some());
        page
    }

    fn push(&mut self, line: usize, kind: Kind, text: &str, planned: bool) {
        self.pieces.push(Piece { line, kind, text: text.to_owned(), planned });
    }

    fn paragraph(&mut self, lines: &mut Vec<(usize, &str)>, planned: bool) {
        let (mut in_span, mut span, mut prose) = (None, String::new(), String::new());
        for (line, text) in lines.drain(..) {
            for (at, part) in text.split('`').enumerate() {
                if at > 0 {
                    in_span = match in_span {
                        Some(begin) => {
                            self.push(begin, Kind::Span, &std::mem::take(&mut span), planned);
                            None
                        }
                        None => Some(line),
                    };
                }
                if in_span.is_some() { &mut span } else { &mut prose }.push_str(part);
            }
            // The text of a link is prose, its target is not.
            let prose = std::mem::take(&mut prose);
            let mut parts = prose.split("](");
            let mut left = parts.next().unwrap_or_default().to_owned();
            for part in parts {
                let (target, rest) = part.split_once(')').unwrap_or((part, ""));
                self.links.push((line, target.to_owned()));
                left.push(' ');
                left.push_str(rest);
            }
            self.push(line, Kind::Prose, &left, planned);
            if in_span.is_some() {
                span.push(' ');
            }
        }
    }
}

fn heading(line: &str) -> Option<(usize, &str)> {
    let title = line.trim_start_matches('#');
    let level = line.len() - title.len();
    (level > 0 && title.starts_with(' ')).then(|| (level, title.trim()))
}

fn slug(title: &str) -> String {
    let kept = title.to_lowercase().replace(' ', "-");
    kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_')).collect()
}
