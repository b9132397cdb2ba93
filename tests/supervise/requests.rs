//! Who may ask for what.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::process::Command;

use handoff::Error;
use handoff::supervise::wire::Swap;

use crate::Rig;
use crate::common::{HANDOFF, has_sudo};

fn refusal(e: Error) -> String {
    let Error::Refused { reason } = e else { panic!("{e}") };
    reason
}

#[test]
fn a_program_that_is_not_allowed_is_refused_and_written_down() {
    let rig = Rig::start(&["allow=/bin/true"], &["--version-label", "v0"]);
    let to = |binary: &str| Swap { binary: Some(binary.into()), ..rig.to("v1", &[]) };
    assert!(refusal(rig.swap(to("/bin/false")).unwrap_err()).contains("none of the allowed programs"));
    assert!(refusal(rig.swap(to("bin/true")).unwrap_err()).contains("no full path"));
    // A link to the configured one is the configured one: the file counts.
    let link = rig.dir().join("link");
    symlink(HANDOFF, &link).unwrap();
    assert!(rig.swap(to(link.to_str().unwrap())).unwrap().committed);
    // And what has an allowed name is not allowed for that.
    std::fs::remove_file(&link).unwrap();
    symlink("/bin/false", &link).unwrap();
    assert!(refusal(rig.swap(to(link.to_str().unwrap())).unwrap_err()).contains("none of the allowed"));
    let journal = std::fs::read_to_string(rig.dir().join("journal")).unwrap();
    assert!(
        journal.contains("a swap to /bin/false: /bin/false is none of the allowed programs"),
        "{journal}"
    );
    assert_eq!(rig.serving(), "v1");
    rig.stop();
}

#[test]
fn what_is_no_request_is_answered_and_a_stranger_is_not_served() {
    let rig = Rig::start(&[], &[]);
    let mode = std::fs::metadata(rig.dir().join("trigger")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let mut socket = UnixStream::connect(rig.dir().join("trigger")).unwrap();
    socket.write_all(b"{\"type\":\"dance\"}\n").unwrap();
    let mut answer = String::new();
    BufReader::new(&socket).read_line(&mut answer).unwrap();
    assert!(
        answer.contains("\"refused\"") && answer.contains("no request that this supervisor knows"),
        "{answer}"
    );
    rig.stop();
}

#[test]
fn another_user_may_ask_for_the_configured_swap_alone_and_only_where_that_is_allowed() {
    if !has_sudo() {
        return;
    }
    let nobody = Command::new("id").args(["-u", "nobody"]).output().unwrap();
    let uid = String::from_utf8(nobody.stdout).unwrap();
    let asks = |rig: &Rig, request: &str| {
        std::fs::set_permissions(rig.dir(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let script = "import socket,sys\ns=socket.socket(socket.AF_UNIX)\ns.connect(sys.argv[1])\ns.sendall(sys.argv[2].encode()+b'\\n')\n\
                      for line in s.makefile():\n  print(line)\n  if 'started' not in line and 'queued' not in line: break";
        let output = Command::new("sudo")
            .args(["-n", "-u", "nobody", "python3", "-c", script])
            .arg(rig.dir().join("trigger"))
            .arg(request)
            .output()
            .unwrap();
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    };
    let allowed = format!("uid={}", uid.trim());
    let rig = Rig::start(&[&allowed], &["--version-label", "v0"]);
    for (request, expected) in [
        (r#"{"type":"swap","args":["kvd"]}"#, "may not give arguments"),
        (r#"{"type":"swap","binary":"/bin/true"}"#, "no other is allowed"),
        (r#"{"type":"reexec"}"#, "may ask for swaps alone"),
        (r#"{"type":"status"}"#, "supervising"),
        (r#"{"type":"swap"}"#, "committed"),
    ] {
        let said = asks(&rig, request);
        assert!(said.contains(expected), "{request}: {said}");
    }
    rig.stop();
    // Whoever is not allowed does not come to the socket at all; one that lets everybody connect asks who it is.
    let rig = Rig::start(&["uid=12345"], &[]);
    assert!(asks(&rig, r#"{"type":"status"}"#).contains("may not ask this supervisor"));
    rig.stop();
}
