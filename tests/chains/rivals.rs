//! Two who want the same at once.

use crate::rig::Rig;

const HOLDERS: [&str; 4] = [
    "exec handoff exec-successor --warm kvd-v2 -- cut",
    "exec handoff exec-successor --warm kvd-v2 -- handoff drain --no-seal -- cut",
    "exec handoff drain --no-seal -- cut",
    "exec handoff drain -- cut",
];

#[test]
fn a_second_chain_or_swap_is_told_whose_handoff_is_in_its_way() {
    let rig = Rig::start(&[]);
    for holder in HOLDERS {
        let mut first = rig.sh(holder);
        first.wait_for("cut ");
        let id = rig.status().unwrap().handoff.unwrap().handoff;
        for second in [
            "handoff drain -- true",
            "handoff drain --no-seal -- true",
            "handoff drain --exit",
            "handoff drain -- handoff exec-successor kvd-v2",
            "handoff exec-successor --warm kvd-v2 -- handoff drain -- handoff commit",
            "handoff journal begin -- handoff drain -- true",
            "handoff swap kvd-v2",
        ] {
            let said = rig.expect(second, 1);
            assert!(said.contains(&id), "{holder}, {second}: {said}");
            assert_eq!(said.lines().count(), 1, "{holder}, {second}: {said}");
        }
        first.kill();
        rig.expect_undone();
    }
    rig.expect_clean();
}

#[test]
fn a_chain_that_holds_the_journal_keeps_others_from_it() {
    let rig = Rig::start(&[]);
    let mut first = rig.sh("exec handoff journal begin -- cut");
    first.wait_for("cut ");
    for second in ["handoff journal begin -- true", "handoff swap kvd-v2"] {
        let said = rig.expect(second, 1);
        assert!(said.contains("journal"), "{second}: {said}");
    }
    first.kill();
    rig.expect_undone();
    rig.expect_clean();
}

#[test]
fn of_two_successors_on_one_lease_exactly_one_is_started() {
    let mut rig = Rig::start(&[]);
    let wait = "handoff exec-successor --wait kvd-v2";
    let said = rig.expect(
        &format!("handoff drain -- sh -c '{wait} & {wait}; own=$?; wait $!; echo codes $((own + $?)) $((own * $?))'"),
        0,
    );
    assert!(said.contains("codes 1 0"), "one commits and the other is refused: {said}");
    rig.first.as_mut().unwrap().expect(0);
    rig.settle();
    assert_eq!(rig.label(), "v2");
    rig.expect_clean();
}

#[test]
fn of_many_chains_at_once_exactly_one_commits() {
    let mut rig = Rig::start(&[]);
    let line = |number: u32| {
        let journal = format!("HANDOFF_JOURNAL=$HANDOFF_JOURNAL-{number}");
        match number % 3 {
            0 => "exec handoff exec-successor --warm kvd-v2 -- handoff drain -- handoff commit".to_owned(),
            1 => "exec handoff swap kvd-v2".to_owned(),
            _ => "exec handoff drain -- handoff exec-successor --wait kvd-v2".to_owned(),
        }
        .replacen("exec", &format!("{journal} exec"), 1)
    };
    let mut chains: Vec<_> = (0..6).map(|number| rig.sh(&line(number))).collect();
    let first = rig.first.as_mut().unwrap();
    first.expect(0);
    let codes: Vec<Option<i32>> = chains.iter_mut().map(|chain| chain.wait().code()).collect();
    // Another one may have begun when the first was over, and then it was swapped twice.
    assert!(codes.contains(&Some(0)), "{codes:?} {}", rig.everything_said());
    assert!(codes.iter().all(|code| matches!(code, Some(0 | 1))), "{codes:?} {}", rig.everything_said());
    rig.settle();
    assert_eq!(rig.label(), "v2");
    rig.expect_clean();
}
