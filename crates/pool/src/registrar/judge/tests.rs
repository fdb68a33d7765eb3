#![allow(clippy::unwrap_used)]
use super::*;

const PATIENCE: Duration = Duration::from_secs(30);

struct Scene {
    judge: Judge,
    now: Instant,
    round: Round,
}

fn address(number: u8) -> IpAddr {
    IpAddr::from([10, 8, 0, number])
}

fn good() -> Probe {
    Probe::Answers(Answer { ready: true, ..Answer::default() })
}

impl Scene {
    /// So many pods, all of which answer and are registered.
    fn of(count: u8) -> Scene {
        let numbers = || 0..count;
        let seen =
            |number| Seen { name: format!("m{number}"), address: address(number), is_pod: true };
        let fact = |number| PodFact {
            uid: format!("u{number}"),
            ends: false,
            notice: false,
            address: Some(address(number)),
        };
        let round = Round {
            members: Some(numbers().map(seen).collect()),
            pods: Some(numbers().map(|number| (format!("m{number}"), fact(number))).collect()),
            probes: numbers().map(|number| (address(number), good())).collect(),
            registered: numbers().map(address).collect(),
        };
        let mut scene = Scene { judge: Judge::new(PATIENCE), now: Instant::now(), round };
        assert!(scene.go().members.values().all(|member| member.state == MemberState::Ready));
        scene
    }

    fn go(&mut self) -> View {
        self.now += Duration::from_secs(2);
        self.judge.round(self.now, &self.round)
    }

    fn state(&mut self, number: u8) -> MemberState {
        self.go().members[&address(number)].state
    }

    fn kill(&mut self, number: u8) {
        self.round.probes.insert(address(number), Probe::Fails);
    }

    fn pod(&mut self, number: u8) -> &mut PodFact {
        self.round.pods.as_mut().unwrap().get_mut(&format!("m{number}")).unwrap()
    }
}

#[test]
fn the_third_failure_in_a_row_counts() {
    let mut scene = Scene::of(4);
    for answers in [false, false, true, false, false] {
        match answers {
            true => drop(scene.round.probes.insert(address(1), good())),
            false => scene.kill(1),
        }
        assert_ne!(scene.state(1), MemberState::Leaving(Removal::Unreachable));
    }
    assert_eq!(scene.state(1), MemberState::Leaving(Removal::Unreachable));
    scene.round.probes.insert(address(1), good());
    assert_eq!(scene.state(1), MemberState::Ready, "and an answer takes it back");
}

#[test]
fn of_two_of_four_that_fall_silent_one_is_given_up_within_a_minute() {
    let mut scene = Scene::of(4);
    (0..2).for_each(|number| scene.kill(number));
    let given_up = |view: &View| {
        let gone = MemberState::Leaving(Removal::Unreachable);
        view.members.values().filter(|member| member.state == gone).count()
    };
    for round in 1..=31 {
        let view = scene.go();
        assert_eq!(given_up(&view), usize::from(round >= 3), "round {round}");
        assert_eq!(view.refused.len(), usize::from(round >= 3), "round {round}");
    }
    let later: Vec<usize> = (0..3).map(|_| given_up(&scene.go())).collect();
    assert_eq!(later.last(), Some(&2), "{later:?}");
}

#[test]
fn nobody_is_given_up_when_nobody_answers() {
    let mut scene = Scene::of(4);
    (0..4).for_each(|number| scene.kill(number));
    for _ in 0..40 {
        let view = scene.go();
        assert!(!view.complete);
        assert!(view.members.values().all(|m| !matches!(m.state, MemberState::Leaving(_))));
    }
}

#[test]
fn pods_and_members_speak_for_themselves_past_the_guard() {
    let mut scene = Scene::of(5);
    scene.pod(0).ends = true;
    scene.pod(1).notice = true;
    scene.round.pods.as_mut().unwrap().remove("m2");
    scene.pod(3).uid = "another".to_owned();
    let draining = Answer { ready: false, draining: true, ..Answer::default() };
    scene.round.probes.insert(address(4), Probe::Answers(draining));
    // The fourth is listed with its name, but another pod has it: it is another member, that has just begun.
    let view = scene.go();
    let state = |number| view.members[&address(number)].state;
    assert_eq!(state(0), MemberState::Leaving(Removal::Pod));
    assert_eq!(state(1), MemberState::Leaving(Removal::Notice));
    assert_eq!(state(2), MemberState::Leaving(Removal::Pod));
    assert_eq!(state(3), MemberState::Ready);
    assert_eq!(state(4), MemberState::Leaving(Removal::Draining));
}

#[test]
fn without_a_list_of_pods_no_pod_is_gone() {
    let mut scene = Scene::of(2);
    scene.round.pods = None;
    assert_eq!(scene.state(0), MemberState::Ready);
    scene.round.members = Some(Vec::new());
    let view = scene.go();
    assert_eq!(
        view.members[&address(0)].state,
        MemberState::Ready,
        "pods are known by their objects"
    );
    assert!(!view.complete, "who is no pod is not known");
    scene.round.pods = Some(BTreeMap::new());
    assert_eq!(scene.state(0), MemberState::Leaving(Removal::Pod));
}

#[test]
fn who_has_never_answered_is_starting_for_a_while() {
    let mut scene = Scene::of(3);
    let seen = Seen { name: "late".to_owned(), address: address(9), is_pod: false };
    scene.round.members.as_mut().unwrap().push(seen);
    scene.round.registered.insert(address(9));
    scene.kill(9);
    for _ in 0..15 {
        assert_eq!(scene.state(9), MemberState::Starting);
    }
    assert_eq!(scene.state(9), MemberState::Leaving(Removal::Unreachable));
    scene.round.members.as_mut().unwrap().pop();
    assert!(!scene.go().members.contains_key(&address(9)), "the list alone says who is no pod");
}

#[test]
fn who_is_not_registered_costs_the_guard_nothing() {
    let mut scene = Scene::of(4);
    scene.kill(0);
    scene.kill(1);
    scene.round.registered.remove(&address(0));
    let view = (0..3).map(|_| scene.go()).last().unwrap();
    assert_eq!(view.members[&address(0)].state, MemberState::Silent);
    assert_eq!(view.members[&address(1)].state, MemberState::Leaving(Removal::Unreachable));
}

#[test]
fn what_a_member_said_holds_while_probes_fail() {
    let draining = Answer { draining: true, ..Answer::default() };
    let busy = Answer::default();
    for (said, lasting, at_last) in [
        (good(), MemberState::Ready, MemberState::Leaving(Removal::Unreachable)),
        (Probe::Answers(busy), MemberState::NotReady, MemberState::Leaving(Removal::Unreachable)),
        (
            Probe::Answers(draining),
            MemberState::Leaving(Removal::Draining),
            MemberState::Leaving(Removal::Draining),
        ),
    ] {
        let mut scene = Scene::of(4);
        scene.round.probes.insert(address(1), said);
        assert_eq!(scene.state(1), lasting);
        scene.kill(1);
        let course: Vec<MemberState> = (0..3).map(|_| scene.state(1)).collect();
        assert_eq!(course, [lasting, lasting, at_last]);
    }
}
