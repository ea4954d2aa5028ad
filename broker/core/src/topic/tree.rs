//! Map from filters to values, queried with a name: a trie over levels. An edge holds several levels if no other
//! filter branches off between them.
//!
//! One filter adds at most two nodes, even with 65,535 levels, so memory is bounded by what clients send. Nodes are in
//! a vector and refer to each other by index, so walking, pruning and dropping are loops. Invariant: a node other than
//! the root has a value or at least two children.

use std::collections::{BTreeMap, HashMap};

use super::{Filter, Name, split_level};

const ROOT: usize = 0;

/// Map from filters to small maps of values. The order of visits depends only on the contents.
#[derive(Debug, Clone)]
pub struct Tree<K, V> {
    /// Nodes by index; the root is the first.
    nodes: Vec<Node<K, V>>,
    /// Indexes of unused nodes.
    free: Vec<usize>,
    /// Number of values.
    len: usize,
}

/// A node of the trie.
#[derive(Debug, Clone)]
struct Node<K, V> {
    /// Index of the parent; the root is its own parent.
    parent: usize,
    /// Levels between the parent and this node, `+` included; unused in the root.
    label: Box<[u8]>,
    /// Children, by the first level of their label.
    literal: HashMap<Box<[u8]>, usize>,
    /// Child whose label begins with `+`.
    plus: Option<usize>,
    /// Values of the filter that ends at this node.
    exact: BTreeMap<K, V>,
    /// Values of the filter that continues with `#`.
    below: BTreeMap<K, V>,
}

impl<K, V> Node<K, V> {
    fn new(parent: usize, label: &[u8]) -> Self {
        Self {
            parent,
            label: label.into(),
            literal: HashMap::new(),
            plus: None,
            exact: BTreeMap::new(),
            below: BTreeMap::new(),
        }
    }

    fn child(&self, level: &[u8]) -> Option<usize> {
        if level == b"+" { self.plus } else { self.literal.get(level).copied() }
    }

    fn set_child(&mut self, level: &[u8], child: usize) {
        if level == b"+" {
            self.plus = Some(child);
        } else {
            self.literal.insert(level.into(), child);
        }
    }

    fn remove_child(&mut self, level: &[u8]) {
        if level == b"+" {
            self.plus = None;
        } else {
            self.literal.remove(level);
        }
    }

    fn only_child(&self) -> Option<usize> {
        match (self.literal.len(), self.plus) {
            (0, child) => child,
            (1, None) => self.literal.values().next().copied(),
            _ => None,
        }
    }

    fn is_leaf(&self) -> bool {
        self.literal.is_empty() && self.plus.is_none()
    }
}

impl<K, V> Default for Tree<K, V> {
    fn default() -> Self {
        Self { nodes: vec![Node::new(ROOT, b"")], free: Vec::new(), len: 0 }
    }
}

impl<K: Ord, V> Tree<K, V> {
    /// Returns an empty tree.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the number of values over all filters.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether there are no values.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Sets the value of `key` under `filter` and returns the previous one.
    pub fn insert(&mut self, filter: &Filter, key: K, value: V) -> Option<V> {
        let (path, below) = split_wildcard(filter);
        let mut at = ROOT;
        let mut rest = path;
        while let Some(path) = rest {
            let (first, _) = split_level(path);
            let Some(child) = self.node(at).child(first) else {
                at = self.add(at, path);
                break;
            };
            let (common, label_goes_on, path_rest) = split_common(&self.node(child).label, path);
            at = if label_goes_on { self.split(child, common) } else { child };
            rest = path_rest;
        }
        let node = self.node_mut(at);
        let values = if below { &mut node.below } else { &mut node.exact };
        let former = values.insert(key, value);
        self.len += usize::from(former.is_none());
        former
    }

    /// Removes the value of `key` under `filter` and returns it.
    pub fn remove(&mut self, filter: &Filter, key: &K) -> Option<V> {
        let (at, below) = self.find(filter)?;
        let node = self.node_mut(at);
        let values = if below { &mut node.below } else { &mut node.exact };
        let value = values.remove(key)?;
        self.len -= 1;
        self.prune(at);
        Some(value)
    }

    /// Returns the values of exactly this filter; `None` if there are none.
    pub fn values(&self, filter: &Filter) -> Option<&BTreeMap<K, V>> {
        let (at, below) = self.find(filter)?;
        let node = self.node(at);
        let values = if below { &node.below } else { &node.exact };
        (!values.is_empty()).then_some(values)
    }

    /// Calls `visit` for every value whose filter matches `name`. A key with several matching filters is visited once
    /// for each.
    pub fn matches<'a>(&'a self, name: &Name, mut visit: impl FnMut(&'a K, &'a V)) {
        let mut visit_all = |values: &'a BTreeMap<K, V>| values.iter().for_each(|(key, value)| visit(key, value));
        // Each node is reached by one path of levels, so it is visited at most once.
        let mut open = vec![(ROOT, Some(name.as_bytes()))];
        while let Some((at, rest)) = open.pop() {
            let node = self.node(at);
            // Filters that begin with a wildcard are children of the root [MQTT-4.7.2-1].
            let wildcards = at != ROOT || !name.is_reserved();
            if wildcards {
                visit_all(&node.below);
            }
            let Some(rest) = rest else {
                visit_all(&node.exact);
                continue;
            };
            let literal = node.literal.get(split_level(rest).0).copied();
            for child in literal.into_iter().chain(node.plus.filter(|_| wildcards)) {
                if let Ok(rest) = follow(&self.node(child).label, rest) {
                    open.push((child, rest));
                }
            }
        }
    }

    fn find(&self, filter: &Filter) -> Option<(usize, bool)> {
        let (path, below) = split_wildcard(filter);
        let mut at = ROOT;
        let mut rest = path;
        while let Some(path) = rest {
            at = self.node(at).child(split_level(path).0)?;
            let (_, label_goes_on, path_rest) = split_common(&self.node(at).label, path);
            if label_goes_on {
                return None;
            }
            rest = path_rest;
        }
        Some((at, below))
    }

    fn add(&mut self, parent: usize, label: &[u8]) -> usize {
        let node = Node::new(parent, label);
        let id = if let Some(id) = self.free.pop() {
            *self.node_mut(id) = node;
            id
        } else {
            self.nodes.push(node);
            self.nodes.len() - 1
        };
        self.node_mut(parent).set_child(split_level(label).0, id);
        id
    }

    /// Inserts a node between `child` and its parent; its label is the first `common` bytes of the child's label.
    fn split(&mut self, child: usize, common: usize) -> usize {
        let node = self.node(child);
        let parent = node.parent;
        let (head, tail) = node.label.split_at(common);
        let (head, tail): (Box<[u8]>, Box<[u8]>) = (head.into(), tail.get(1..).unwrap_or_default().into());
        let middle = self.add(parent, &head);
        self.node_mut(middle).set_child(split_level(&tail).0, child);
        let node = self.node_mut(child);
        node.parent = middle;
        node.label = tail;
        middle
    }

    /// Restores the invariant for a node that lost a value, and for its ancestors.
    fn prune(&mut self, mut at: usize) {
        while at != ROOT && self.node(at).exact.is_empty() && self.node(at).below.is_empty() {
            let node = self.node(at);
            let parent = node.parent;
            let first: Box<[u8]> = split_level(&node.label).0.into();
            if node.is_leaf() {
                self.node_mut(parent).remove_child(&first);
                self.release(at);
                at = parent;
            } else if let Some(child) = node.only_child() {
                let label = [&*node.label, &*self.node(child).label].join(&b'/').into();
                let child_node = self.node_mut(child);
                child_node.label = label;
                child_node.parent = parent;
                self.node_mut(parent).set_child(&first, child);
                self.release(at);
                return;
            } else {
                return;
            }
        }
    }

    fn release(&mut self, id: usize) {
        *self.node_mut(id) = Node::new(ROOT, b"");
        self.free.push(id);
    }

    #[expect(clippy::indexing_slicing, reason = "indexes are made by add and forgotten by release")]
    fn node(&self, id: usize) -> &Node<K, V> {
        &self.nodes[id]
    }

    #[expect(clippy::indexing_slicing, reason = "indexes are made by add and forgotten by release")]
    fn node_mut(&mut self, id: usize) -> &mut Node<K, V> {
        &mut self.nodes[id]
    }
}

/// Returns the levels before `#`, and whether there is a `#`; no levels for the filter `#`.
fn split_wildcard(filter: &Filter) -> (Option<&[u8]>, bool) {
    match filter.as_bytes() {
        b"#" => (None, true),
        [path @ .., b'/', b'#'] => (Some(path), true),
        path => (Some(path), false),
    }
}

/// Compares `label` with the beginning of `path`, level by level. Returns the length of the common levels in bytes,
/// whether the label has more levels, and the rest of the path.
fn split_common<'a>(label: &[u8], path: &'a [u8]) -> (usize, bool, Option<&'a [u8]>) {
    let mut label_rest = Some(label);
    let mut path_rest = Some(path);
    while let (Some(mine), Some(theirs)) = (label_rest, path_rest) {
        let ((mine, more_label), (theirs, more_path)) = (split_level(mine), split_level(theirs));
        if mine != theirs {
            break;
        }
        label_rest = more_label;
        path_rest = more_path;
    }
    let common = label_rest.map_or(label.len(), |rest| label.len().saturating_sub(rest.len() + 1));
    (common, label_rest.is_some(), path_rest)
}

/// The levels of the name differ from those of the label.
struct Differs;

/// Matches the levels of a label with the beginning of a name and returns the rest of the name.
fn follow<'a>(label: &[u8], name: &'a [u8]) -> Result<Option<&'a [u8]>, Differs> {
    let mut label_rest = Some(label);
    let mut name_rest = Some(name);
    while let Some(label) = label_rest {
        let ((level, label), (name, rest)) = (split_level(label), split_level(name_rest.ok_or(Differs)?));
        if level != b"+" && level != name {
            return Err(Differs);
        }
        label_rest = label;
        name_rest = rest;
    }
    Ok(name_rest)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::super::any::{any_filter, any_name};
    use super::*;

    fn matched(tree: &Tree<u8, u32>, name: &Name) -> Vec<(u8, u32)> {
        let mut all = Vec::new();
        tree.matches(name, |key, value| all.push((*key, *value)));
        all.sort_unstable();
        all
    }

    fn check_invariant(tree: &Tree<u8, u32>) {
        let mut seen = BTreeSet::from([ROOT]);
        let mut open = vec![ROOT];
        while let Some(at) = open.pop() {
            let node = tree.node(at);
            let children: Vec<_> = node.literal.values().chain(&node.plus).copied().collect();
            let used = !node.exact.is_empty() || !node.below.is_empty() || children.len() > 1;
            assert!(at == ROOT || used, "node without use: {node:?}");
            for child in children {
                assert_eq!(tree.node(child).parent, at);
                assert!(seen.insert(child));
                open.push(child);
            }
        }
        assert_eq!(seen.len() + tree.free.len(), tree.nodes.len(), "a node leaked");
    }

    #[derive(Debug, Clone)]
    enum Step {
        Insert(Filter, u8, u32),
        Remove(Filter, u8),
    }

    fn any_step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (any_filter(), 0..3u8, 0..9u32).prop_map(|(filter, key, value)| Step::Insert(filter, key, value)),
            2 => (any_filter(), 0..3u8).prop_map(|(filter, key)| Step::Remove(filter, key)),
        ]
    }

    proptest! {
        #[test]
        fn agrees_with_a_list(steps in prop::collection::vec(any_step(), 0..80), names in prop::collection::vec(any_name(), 9)) {
            let mut tree = Tree::new();
            let mut list = BTreeMap::new();
            for step in steps {
                match step {
                    Step::Insert(filter, key, value) => {
                        prop_assert_eq!(tree.insert(&filter, key, value), list.insert((filter, key), value));
                    }
                    Step::Remove(filter, key) => {
                        prop_assert_eq!(tree.remove(&filter, &key), list.remove(&(filter, key)));
                    }
                }
                prop_assert_eq!(tree.len(), list.len());
                check_invariant(&tree);
            }
            for name in names {
                let mut naive: Vec<_> = list
                    .iter()
                    .filter(|((filter, _), _)| filter.matches(&name))
                    .map(|((_, key), value)| (*key, *value))
                    .collect();
                naive.sort_unstable();
                prop_assert_eq!(matched(&tree, &name), naive, "{:?}", name);
            }
            for ((filter, key), value) in &list {
                prop_assert_eq!(tree.values(filter).and_then(|values| values.get(key)), Some(value));
            }
            for (filter, key) in list.into_keys() {
                prop_assert!(tree.remove(&filter, &key).is_some());
            }
            prop_assert!(tree.is_empty());
            prop_assert_eq!(tree.free.len() + 1, tree.nodes.len());
        }
    }

    #[test]
    fn the_deepest_filters_cost_two_nodes_each() {
        let mut tree = Tree::new();
        let deep = "+/".repeat(32_767);
        for cut in 0..500 {
            let filter = format!("{}x{cut}", "+/".repeat(32_760 - 50 * cut));
            tree.insert(&filter.parse().unwrap(), 0, 0);
        }
        assert!(tree.nodes.len() <= 1001, "{} nodes", tree.nodes.len());
        check_invariant(&tree);
        tree.insert(&deep.parse().unwrap(), 1, 7);
        assert_eq!(matched(&tree, &"/".repeat(32_767).parse().unwrap()), [(1, 7)]);
    }
}
