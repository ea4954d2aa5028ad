use super::*;

type Stored = BTreeMap<Vec<u8>, Vec<u8>>;

const FIRST: Ordinal = Ordinal::new(0);

fn routes(state: &mut MetaState, at: u64, filter: &str, qos: Option<QoS>) -> Answer {
    let command = Command::Routes { shard: ShardId::new(1), index: at, changes: vec![(filter.into(), qos)] };
    state.apply(at, command, &mut Stored::new())
}

#[test]
fn a_former_leaders_late_word_is_void() {
    let mut state = MetaState::default();
    assert_eq!(routes(&mut state, 10, "a/b", Some(QoS::AtLeastOnce)), Answer::Done);
    state.apply(11, Command::FenceShard { shard: ShardId::new(1), index: 20 }, &mut Stored::new());
    assert_eq!(routes(&mut state, 19, "a/b", None), Answer::Refused);
    assert_eq!(state.matches(&"a/b".parse().unwrap()), BTreeMap::from([(ShardId::new(1), QoS::AtLeastOnce)]));
    assert_eq!(routes(&mut state, 20, "a/b", None), Answer::Done);
    assert!(state.matches(&"a/b".parse().unwrap()).is_empty());
}

#[test]
fn a_restart_ends_the_former_epoch_and_a_repeated_question_gets_the_same_answer() {
    let (mut state, mut rows) = (MetaState::default(), Stored::new());
    let form = Command::Form { cluster: "c".into(), shards: 8, members: BTreeMap::from([(NodeId::new(7), FIRST)]) };
    state.apply(1, form, &mut rows);
    let epoch = |number| Answer::Epoch(NodeEpoch::new(number));
    let up = |incarnation| Command::NodeUp { node: NodeId::new(7), incarnation, former: None };
    assert_eq!(state.apply(2, up(1), &mut rows), epoch(1));
    assert_eq!(state.apply(3, up(1), &mut rows), epoch(1));
    assert_eq!(state.apply(4, up(2), &mut rows), epoch(2));
    assert_eq!(state.member(NodeId::new(7)).unwrap().ended, Some(NodeEpoch::new(1)));
    assert_eq!(state.apply(5, up(1), &mut rows), Answer::Refused);
    let back = MetaState::restore(rows).unwrap();
    assert_eq!(back.member(NodeId::new(7)), state.member(NodeId::new(7)));
    assert_eq!(back.header(), state.header());
}

#[test]
fn a_node_with_an_empty_disk_replaces_its_former_self_for_good() {
    let (mut state, mut rows) = (MetaState::default(), Stored::new());
    let form = Command::Form { cluster: "c".into(), shards: 8, members: BTreeMap::from([(NodeId::new(7), FIRST)]) };
    state.apply(1, form, &mut rows);
    assert_eq!(state.apply(2, Command::Join { node: NodeId::new(8), ordinal: FIRST }, &mut rows), Answer::Done);
    assert!(state.member(NodeId::new(7)).unwrap().removed);
    assert_eq!(state.apply(3, Command::Join { node: NodeId::new(7), ordinal: FIRST }, &mut rows), Answer::Refused);
}

#[test]
fn only_a_retiring_member_whose_epoch_is_over_leaves_and_its_ordinal_is_free_after_the_next_resize() {
    let (mut state, mut rows) = (MetaState::default(), Stored::new());
    let nodes: Vec<NodeId> = (10..15).map(NodeId::new).collect();
    let members = nodes.iter().copied().zip((0..5).map(Ordinal::new)).collect();
    let last = nodes[4];
    let mut apply = |command| state.apply(1, command, &mut rows);
    apply(Command::Form { cluster: "c".into(), shards: 8, members });
    apply(Command::NodeUp { node: last, incarnation: 1, former: None });
    assert_eq!(apply(Command::Leave { node: last }), Answer::Refused, "it does not retire");
    assert_eq!(apply(Command::Resize { nodes: 0 }), Answer::Refused);
    assert_eq!(apply(Command::Resize { nodes: 4 }), Answer::Done);
    assert_eq!(apply(Command::Leave { node: last }), Answer::Refused, "it may have clients");
    assert_eq!(apply(Command::NodeDown { node: last, epoch: NodeEpoch::FIRST }), Answer::Done);
    assert_eq!(apply(Command::Leave { node: nodes[3] }), Answer::Refused, "another member");
    assert_eq!(apply(Command::Leave { node: last }), Answer::Done);
    assert_eq!(apply(Command::Leave { node: last }), Answer::Done, "a repetition");
    assert_eq!(apply(Command::NodeUp { node: last, incarnation: 2, former: None }), Answer::Refused);
    let newcomer = || Command::Join { node: NodeId::new(20), ordinal: Ordinal::new(4) };
    assert_eq!(apply(newcomer()), Answer::Refused, "the ordinal retires");
    let mut back = MetaState::restore(rows.clone()).unwrap();
    assert_eq!(back.size(), Some(4));
    assert!(back.has_left(last) && !back.has_left(nodes[3]));
    assert_eq!(back.apply(2, Command::Resize { nodes: 5 }, &mut rows), Answer::Done);
    assert_eq!(back.apply(3, newcomer(), &mut rows), Answer::Done);
    assert!(!back.has_left(last), "another node has its ordinal");
}
