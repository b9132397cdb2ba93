//! Links in an order that makes no sense: each says what comes next, and changes nothing.

use crate::rig::{Rig, Run};

/// What a shell can say, in each place where it holds a lease, that is wrong there.
struct Place {
    /// How the shell comes to hold it.
    line: &'static str,
    phase: &'static str,
    wrong: &'static [&'static str],
    /// What the error says comes next.
    next: &'static str,
    /// How it ends well from there.
    right: &'static [&'static str],
}

const PLACES: [Place; 5] = [
    Place {
        line: "exec handoff exec-successor --warm kvd-v2 -- sh",
        phase: "warm",
        wrong: &[
            "seal",
            "commit",
            "exec-successor kvd-v2",
            "exec-successor --wait kvd-v2",
            "exec-successor --warm kvd-v2 -- true",
            "drain --exit",
        ],
        next: "`handoff drain`",
        right: &["drain --no-seal", "seal", "commit"],
    },
    Place {
        line: "exec handoff exec-successor --warm kvd-v2 -- handoff drain --no-seal -- sh",
        phase: "drained",
        wrong: &[
            "drain",
            "drain --no-seal",
            "drain --exit",
            "commit",
            "exec-successor kvd-v2",
            "exec-successor --wait kvd-v2",
            "exec-successor --warm kvd-v2 -- true",
        ],
        next: "`handoff seal`",
        right: &["seal", "commit"],
    },
    Place {
        line: "exec handoff exec-successor --warm kvd-v2 -- handoff drain -- sh",
        phase: "sealed",
        wrong: &[
            "drain",
            "drain --exit",
            "seal",
            "exec-successor kvd-v2",
            "exec-successor --wait kvd-v2",
            "exec-successor --warm kvd-v2 -- true",
        ],
        next: "`handoff commit`",
        right: &["commit"],
    },
    Place {
        line: "exec handoff drain --no-seal -- sh",
        phase: "drained",
        wrong: &[
            "drain",
            "drain --no-seal",
            "commit",
            "exec-successor kvd-v2",
            "exec-successor --wait kvd-v2",
            "exec-successor --warm kvd-v2 -- true",
        ],
        next: "`handoff seal`",
        right: &["seal", "exec-successor --wait kvd-v2"],
    },
    Place {
        line: "exec handoff drain -- sh",
        phase: "sealed",
        wrong: &["drain", "drain --no-seal", "seal", "commit", "exec-successor --warm kvd-v2 -- true"],
        next: "`handoff exec-successor`, in place or with --wait",
        right: &["exec-successor --wait kvd-v2"],
    },
];

/// Asks for each, one after another; returns the exit codes.
fn codes(shell: &mut Run, commands: &[&str], mark: &str) -> Vec<i32> {
    let ask = |(number, command): (usize, &&str)| {
        shell.asks(&format!("handoff {command}"), &format!("{mark}-{number}"))
    };
    commands.iter().enumerate().map(ask).collect()
}

#[test]
fn a_wrong_link_says_what_comes_next_and_the_handoff_can_go_on() {
    for place in PLACES {
        let mut rig = Rig::start(&[]);
        let mut shell = rig.sh(place.line);
        let wrong = codes(&mut shell, place.wrong, "wrong");
        assert_eq!(wrong, vec![100; place.wrong.len()], "{}: {}", place.line, shell.said());
        let said = shell.said();
        let refusals = said.lines().filter(|line| {
            line.contains(&format!(
                "is {}: what comes next is {}, or `handoff abort`",
                place.phase, place.next
            ))
        });
        assert_eq!(refusals.count(), place.wrong.len(), "{said}");
        let right = codes(&mut shell, place.right, "right");
        assert_eq!(right, vec![0; place.right.len()], "{}: {}", place.line, shell.said());
        shell.leave();
        shell.expect(0);
        rig.expect_succeeded();
        rig.expect_clean();
    }
}

#[test]
fn a_wrong_link_in_a_chain_ends_it_and_undoes_it() {
    let rig = Rig::start(&[]);
    for place in PLACES {
        for wrong in place.wrong {
            let line = place.line.strip_suffix(" sh").unwrap();
            let said = rig.expect(&format!("{line} handoff {wrong}"), 100);
            assert!(said.contains("what comes next is"), "{line} {wrong}: {said}");
            rig.expect_undone();
        }
    }
    rig.expect_clean();
}

#[test]
fn a_link_without_what_comes_before_it_asks_nobody_for_anything() {
    let rig = Rig::start(&[]);
    let before = rig.status().unwrap().generation;
    for (line, code, says) in [
        ("handoff seal", 100, "`handoff drain --no-seal` comes before it"),
        ("handoff seal -- handoff commit", 100, "`handoff drain --no-seal` comes before it"),
        ("handoff exec-successor kvd-v2", 100, "`handoff drain` comes before it"),
        ("handoff exec-successor --wait kvd-v2", 100, "`handoff drain` comes before it"),
        ("handoff exec-successor --warm kvd-v2", 100, "a program must follow that goes on with the handoff"),
        ("handoff exec-successor --warm kvd-v2 --", 100, "a program must follow"),
        (
            "handoff hold-fds --from-incumbent -- handoff exec-successor kvd-v2",
            100,
            "`handoff drain` comes before it",
        ),
        ("handoff hold-fds --from-incumbent", 100, "a program must follow"),
        ("handoff drain", 100, "a program must follow to hold it"),
        ("handoff drain --no-seal", 100, "a program must follow to hold it"),
        ("handoff journal begin", 100, "a program must follow"),
        ("handoff journal begin -- handoff journal begin -- true", 100, "has begun handoff"),
        ("handoff commit", 1, "no handoff is in progress"),
        ("handoff abort", 1, "no handoff is in progress"),
        ("handoff hold-fds --from-incumbent -- handoff commit", 1, "no handoff is in progress"),
    ] {
        let said = rig.expect(line, code);
        assert!(said.contains(says), "{line}: {said}");
        assert_eq!(said.lines().count(), 1, "{line}: {said}");
    }
    rig.expect_undone();
    assert_eq!(rig.status().unwrap().generation, before);
    rig.expect_clean();
}
