//! YAML with its positions, read into serde types, all mistakes at once.
//!
//! A plain serde reader stops at the first mistake, has lost `1.0` and `"1"` by the time the type is known, and expands
//! every alias. So a file is parsed into a tree that shares what is aliased and remembers where everything stands, and
//! serde reads the types of [`file`](super::file) from that. A mistake is noted where it is, and reading goes on.
//!
//! What a tree may cost is bounded before anything walks it: its size by the file's, what aliases expand to, and depth.

use std::borrow::Cow;
use std::collections::HashMap;
use std::rc::Rc;

use granit_parser::{Event, Parser, ScalarStyle, Span};

use super::problem::{Path, Place, Problems, shorten};

mod any;
mod field;
mod read;

pub use any::Any;
pub(super) use field::{Field, FromText, text_or};
pub(super) use read::{parse_whole, read};

/// Levels of lists and maps in one another. A level of descriptors is two.
const MAX_DEPTH: usize = 128;

/// Aliases may expand to so many nodes without being asked about the size of what is written.
const FREE_EXPANSION: u64 = 100_000;

/// Beyond that, to so many times what is written.
const MAX_EXPANSION: u64 = 8;

/// One value of a document, and where it stands.
pub(super) struct Node<'s> {
    place: Place,
    kind: Kind<'s>,
}

enum Kind<'s> {
    Scalar { text: Cow<'s, str>, plain: bool },
    List(Vec<Node<'s>>),
    Map { entries: Vec<(Node<'s>, Node<'s>)>, merged: Vec<Rc<Node<'s>>> },
    Alias(Rc<Node<'s>>),
}

/// A list or map that is not finished yet.
struct Open<'s> {
    node: Node<'s>,
    key: Option<Node<'s>>,
    anchor: usize,
    /// Nodes in it, those that aliases stand for included.
    weight: u64,
    depth: usize,
}

/// An anchored node, and what it costs to walk it.
struct Anchored<'s> {
    node: Rc<Node<'s>>,
    weight: u64,
    depth: usize,
}

/// Parses a file of one document. Notes what is wrong and returns nothing if it is no tree.
pub(super) fn parse<'s>(text: &'s str, problems: &Problems) -> Option<Node<'s>> {
    let mut builder = Builder {
        open: Vec::new(),
        anchors: HashMap::new(),
        root: None,
        documents: 0,
        written: 0,
        expanded: 0,
        problems,
    };
    let options = granit_parser::options! { block_nesting_limit: MAX_DEPTH, flow_nesting_limit: MAX_DEPTH };
    for event in Parser::new_from_str_with_options(text.trim_start_matches('\u{feff}'), options) {
        match event {
            Ok((event, span)) => builder.event(event, span)?,
            Err(error) => {
                let place = Place::new(error.marker().line(), error.marker().col());
                let message = match error.kind() {
                    granit_parser::ErrorKind::RecursionLimitExceeded => {
                        format!("nested more than {MAX_DEPTH} levels deep")
                    }
                    _ => format!("not YAML: {}", error.info()),
                };
                problems.error(place, &Path::Root, message);
                return None;
            }
        }
    }
    if builder.root.is_none() {
        problems.error(Place::START, &Path::Root, "the file is empty: it needs a `domain` and `descriptors`");
    }
    builder.root
}

struct Builder<'s, 'p> {
    open: Vec<Open<'s>>,
    anchors: HashMap<usize, Anchored<'s>>,
    root: Option<Node<'s>>,
    documents: usize,
    /// Nodes that stand in the file.
    written: u64,
    /// Nodes that aliases add to them.
    expanded: u64,
    problems: &'p Problems,
}

impl<'s> Builder<'s, '_> {
    /// Takes in one event; `None` when the file is refused.
    fn event(&mut self, event: Event<'s>, span: Span) -> Option<()> {
        let place = Place::new(span.start.line(), span.start.col());
        match event {
            Event::DocumentStart(..) => {
                self.documents += 1;
                if self.documents > 1 {
                    return self.refuse(
                        place,
                        "a second document begins here: a file holds one, so split it in two",
                    );
                }
            }
            Event::Scalar(text, style, anchor, tag) => {
                let mut plain = style == ScalarStyle::Plain;
                if let Some(tag) = tag {
                    // `!!int "5"` is a number, `!!str 5` is text, and so is what has a tag of somebody's own.
                    plain = tag.is_yaml_core_schema() && tag.suffix() != "str";
                }
                self.written += 1;
                return self.finish(Node { place, kind: Kind::Scalar { text, plain } }, anchor, 1, 1);
            }
            Event::SequenceStart(_, anchor, _) => self.begin(place, Kind::List(Vec::new()), anchor),
            Event::MappingStart(_, anchor, _) => {
                self.begin(place, Kind::Map { entries: Vec::new(), merged: Vec::new() }, anchor);
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let open = self.open.pop()?;
                return self.finish(open.node, open.anchor, open.weight, open.depth);
            }
            Event::Alias(id) => {
                let Some(anchored) = self.anchors.get(&id) else {
                    return self.refuse(place, "this alias stands inside what it stands for");
                };
                let (node, weight, depth) = (Rc::clone(&anchored.node), anchored.weight, anchored.depth);
                self.expanded = self.expanded.saturating_add(weight);
                if self.expanded > FREE_EXPANSION.max(self.written.saturating_mul(MAX_EXPANSION)) {
                    return self.refuse(place, "the aliases up to here expand to many times what is written");
                }
                return self.finish(Node { place, kind: Kind::Alias(node) }, 0, weight, depth);
            }
            _ => {}
        }
        Some(())
    }

    fn refuse(&self, place: Place, message: impl Into<String>) -> Option<()> {
        self.problems.error(place, &Path::Root, message);
        None
    }

    fn begin(&mut self, place: Place, kind: Kind<'s>, anchor: usize) {
        self.written += 1;
        self.open.push(Open { node: Node { place, kind }, key: None, anchor, weight: 1, depth: 1 });
    }

    fn finish(&mut self, mut node: Node<'s>, anchor: usize, weight: u64, depth: usize) -> Option<()> {
        let place = node.place;
        if depth > MAX_DEPTH {
            return self.refuse(place, format!("nested more than {MAX_DEPTH} levels deep"));
        }
        if anchor > 0 {
            let shared = Rc::new(node);
            self.anchors.insert(anchor, Anchored { node: Rc::clone(&shared), weight, depth });
            node = Node { place, kind: Kind::Alias(shared) };
        }
        let Some(open) = self.open.last_mut() else {
            self.root = Some(node);
            return Some(());
        };
        open.weight = open.weight.saturating_add(weight);
        open.depth = open.depth.max(depth + 1);
        match &mut open.node.kind {
            Kind::List(items) => items.push(node),
            Kind::Map { entries, merged } => match open.key.take() {
                None => open.key = Some(node),
                Some(key) if key.is_merge() => match merge(node) {
                    Ok(maps) => merged.extend(maps),
                    Err(place) => {
                        return self.refuse(place, "`<<` merges a map, or a list of maps that stands here");
                    }
                },
                Some(key) => entries.push((key, node)),
            },
            Kind::Scalar { .. } | Kind::Alias(_) => {}
        }
        Some(())
    }
}

/// The maps that a merge key (<https://yaml.org/type/merge.html>) takes in, the strongest first.
fn merge(node: Node<'_>) -> Result<Vec<Rc<Node<'_>>>, Place> {
    fn one(node: Node<'_>) -> Result<Rc<Node<'_>>, Place> {
        let map = match node.kind {
            Kind::Alias(map) => map,
            kind => Rc::new(Node { kind, ..node }),
        };
        if matches!(map.resolve().kind, Kind::Map { .. }) { Ok(map) } else { Err(map.place) }
    }
    match node.kind {
        Kind::List(items) => items.into_iter().map(one).collect(),
        _ => Ok(vec![one(node)?]),
    }
}

impl<'s> Node<'s> {
    /// The node itself, or what it is an alias of.
    fn resolve(&self) -> &Self {
        let mut node = self;
        while let Kind::Alias(target) = &node.kind {
            node = target;
        }
        node
    }

    fn is_merge(&self) -> bool {
        matches!(&self.kind, Kind::Scalar { text, plain: true } if text == "<<")
    }

    fn is_null(&self) -> bool {
        match &self.resolve().kind {
            Kind::Scalar { text, plain: true } => matches!(&**text, "" | "~" | "null" | "Null" | "NULL"),
            _ => false,
        }
    }

    /// What it is, as a person would say it.
    fn describe(&self) -> String {
        match &self.resolve().kind {
            Kind::Scalar { .. } if self.is_null() => "nothing".into(),
            Kind::Scalar { text, plain: true } => format!("`{}`", shorten(text)),
            Kind::Scalar { text, plain: false } => format!("the text \"{}\"", shorten(text)),
            Kind::List(_) => "a list".into(),
            Kind::Map { .. } | Kind::Alias(_) => "a map".into(),
        }
    }
}
