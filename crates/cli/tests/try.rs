//! `plyfs try`: the command sees a writable machine, and nothing of the machine changes.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "helpers of tests")]

mod common;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use common::{PLYFS, Place, as_root, fail, names, succeed, text, wait_until};
use plyfs_testkit::need::{self, Need};
use plyfs_testkit::sandbox;

/// Root, or a user whom the machine knows nothing of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Root,
    User,
}

const BOTH: [Who; 2] = [Who::Root, Who::User];

/// `plyfs ARGUMENTS`, by root or by a user, with its sessions in `state`.
fn plyfs(who: Who, place: &Place, arguments: &[&str]) -> Command {
    let mut command = match who {
        Who::Root => Command::new(PLYFS),
        Who::User => {
            let mut command = Command::new("setpriv");
            command.args(["--reuid=4321", "--regid=4321", "--clear-groups", PLYFS]);
            command
        }
    };
    command.args(arguments).current_dir(place.at("")).env("XDG_STATE_HOME", place.at("state"));
    command
}

/// Runs a test for both, in a place that both may write.
fn for_both(test: &str, body: impl Fn(Who, &Place)) {
    as_root(test, |place| {
        place.dirs(&["scratch", "state", "open"]);
        sandbox::open_fuse_to_all(&place.at("scratch")).unwrap();
        place.sh("chmod 777 . state open");
        for who in BOTH {
            body(who, place);
            assert_eq!(names(&place.at("state")), [""; 0], "{who:?} left something behind");
            assert_eq!(place.mounts().iter().filter(|line| line.contains("plyfs ")).count(), 0, "{who:?}");
        }
    });
}

/// The processes whose command line begins so.
fn processes(beginning: &str) -> Vec<String> {
    let all = names(Path::new("/proc")).into_iter().filter(|name| name.parse::<u32>().is_ok());
    let line = |pid: &String| {
        std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default().replace('\0', " ")
    };
    all.filter(|pid| line(pid).starts_with(beginning)).collect()
}

/// Starts a view whose command says that it runs, and waits for that.
fn start_sleeping(who: Who, place: &Place) -> Child {
    let script = "echo started; echo x > /tmp/in-the-view; sleep 100";
    let mut command = plyfs(who, place, &["try", "-q", "--", "sh", "-c", script]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "started\n");
    child
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

#[test]
fn the_first_command_of_the_readme_changes_nothing_but_the_view() {
    for_both("the_first_command_of_the_readme_changes_nothing_but_the_view", |who, place| {
        // Large trees need not be there on every machine.
        place.sh("mkdir -p /usr/share/doc/plyfs-test /usr/share/man; echo x > /usr/share/doc/plyfs-test/f; test -e /etc/motd || : > /etc/motd");
        let motd = std::fs::read("/etc/motd").unwrap();
        let docs = names(Path::new("/usr/share/doc"));
        let script =
            "rm -rf /usr/share/doc; echo hello > /etc/motd; mv /usr/share/man /usr/share/manual; ls /";
        let output = succeed(&mut plyfs(who, place, &["try", "--", "sh", "-c", script]));
        let listed: Vec<String> = text(&output.stdout).lines().map(str::to_owned).collect();
        for name in ["dev", "etc", "proc", "sys", "usr"] {
            assert!(listed.contains(&name.to_owned()), "{who:?}: {listed:?}");
        }
        let said = text(&output.stderr);
        for line in [
            "M motd 6 B",
            "D doc/",
            "R manual/ was /usr/share/man",
            "0 added, 1 modified, 1 deleted, 1 renamed",
        ] {
            assert!(said.contains(line), "{who:?}: no {line:?} in: {said}");
        }
        assert_eq!(std::fs::read("/etc/motd").unwrap(), motd);
        assert_eq!(names(Path::new("/usr/share/doc")), docs);
        assert!(Path::new("/usr/share/man").exists() && !Path::new("/usr/share/manual").exists());
        place.sh("rm -r /usr/share/doc/plyfs-test");
    });
}

#[test]
fn the_exit_code_is_the_commands_own_or_says_which_signal_ended_it() {
    for_both("the_exit_code_is_the_commands_own_or_says_which_signal_ended_it", |who, place| {
        let run = |command: &[&str]| {
            let arguments = [&["try", "-q", "--"], command].concat();
            plyfs(who, place, &arguments).output().unwrap()
        };
        assert_eq!(code(&run(&["true"])), 0);
        assert_eq!(code(&run(&["sh", "-c", "exit 7"])), 7);
        assert_eq!(code(&run(&["sh", "-c", "kill -KILL $$"])), 137);
        assert_eq!(code(&run(&["no-such-command-anywhere"])), 127);
        assert_eq!(code(&run(&["/etc/passwd"])), 126);
        let unusable = plyfs(who, place, &["try", "--lower", "/nowhere", "--", "true"]).output().unwrap();
        assert_eq!(code(&unusable), 125);
        assert_eq!(text(&unusable.stderr).lines().count(), 1, "{}", text(&unusable.stderr));
    });
}

#[test]
fn standard_input_and_output_and_the_working_directory_are_the_commands() {
    for_both("standard_input_and_output_and_the_working_directory_are_the_commands", |who, place| {
        let script = format!(
            "echo 'from outside' | $PLYFS try -q -- sh -c 'cat; pwd; echo aside >&2' 2>{}",
            place.at("open/err").display()
        );
        let mut command = plyfs(who, place, &[]);
        command = {
            let mut shell = Command::new(command.get_program());
            let before: Vec<_> =
                command.get_args().filter(|argument| *argument != PLYFS).map(ToOwned::to_owned).collect();
            if who == Who::User {
                shell.args(before).arg("sh");
            } else {
                shell = Command::new("sh");
            }
            shell.arg("-ec").arg(script).env("PLYFS", PLYFS).env("XDG_STATE_HOME", place.at("state"));
            shell.current_dir(place.at("open"));
            shell
        };
        let said = text(&succeed(&mut command).stdout);
        assert_eq!(said, format!("from outside\n{}\n", place.at("open").display()), "{who:?}");
        assert_eq!(place.read("open/err"), "aside\n");
        place.sh("rm open/err");
    });
}

#[test]
fn nothing_outside_the_view_can_be_written() {
    for_both("nothing_outside_the_view_can_be_written", |who, place| {
        place.dirs(&["disk"]);
        place.sh("mount -t tmpfs none disk && chmod 777 disk && echo kept > disk/f && sysctl -n kernel.hostname > hostname");
        let disk = place.at("disk").display().to_string();
        let script = format!(
            "echo changed > {disk}/f && cat {disk}/f
             for victim in /proc/sys/kernel/hostname /proc/sysrq-trigger /sys/kernel/uevent_helper; do
                 if echo victim > $victim; then echo WROTE $victim; fi
             done 2>/dev/null
             mount -o remount,rw /sys && echo REMOUNTED
             mount -o remount,rw /proc/sys && echo REMOUNTED
             umount /proc/sys && echo UNCOVERED
             mknod /tmp/disk b 254 0 && echo MADE A DEVICE
             ls /dev | grep -E '^(sd|vd|nvme|mem|kmsg|port)' && echo SAW A DEVICE
             ls /proc/1/root && echo SAW THE OUTSIDE
             for process in /proc/[0-9]*; do readlink $process/root; done | grep -v '^/$' && echo SAW THE OUTSIDE
             kill -0 $PARENT && echo SAW A PROCESS
             true"
        );
        let mut command = plyfs(who, place, &["try", "-q", "--", "sh", "-c", &script]);
        let output = succeed(command.env("PARENT", "999999"));
        assert_eq!(text(&output.stdout), "changed\n", "{who:?}");
        assert_eq!(place.read("disk/f"), "kept\n");
        place.sh("umount disk");
    });
}

#[test]
fn other_file_systems_below_the_root_are_writable_in_the_view_and_reported() {
    for_both("other_file_systems_below_the_root_are_writable_in_the_view_and_reported", |who, place| {
        place.dirs(&["one", "ro"]);
        place.sh("mount -t tmpfs none one; mkdir one/two; mount -t tmpfs none one/two; echo x > one/two/f; chmod -R 777 one
                  mount -t tmpfs none ro; echo r > ro/f; mount -o remount,ro ro
                mkdir -m 700 closed; mkdir closed/in; mount -t tmpfs none closed/in");
        let script = "echo y > one/two/f; mkdir one/new; touch ro/no; cat ro/f";
        let output = plyfs(who, place, &["try", "--", "sh", "-c", script]).output().unwrap();
        assert_eq!(text(&output.stdout), "r\n");
        let said = text(&output.stderr);
        assert!(said.contains(&format!("{}\n  M f 2 B", place.at("one/two").display())), "{who:?}: {said}");
        assert!(said.contains("A new/"), "{who:?}: {said}");
        assert!(said.contains("Read-only file system"), "{who:?}: {said}");
        assert_eq!(place.read("one/two/f"), "x\n");
        place.sh("umount one/two one ro closed/in; rm -r closed");
    });
}

#[test]
fn the_view_does_not_contain_itself_and_can_be_walked_to_its_end() {
    for_both("the_view_does_not_contain_itself_and_can_be_walked_to_its_end", |who, place| {
        let (state, here) = (place.at("state"), place.at(""));
        let script = format!(
            "ls -A {}; cd {} && find . -type f | wc -l && cp -r open /tmp/copy && mkdir sub && cp -r /tmp/copy sub",
            state.display(),
            here.display()
        );
        let arguments = ["10", PLYFS, "try", "--keep", "open/kept", "-q", "--", "sh", "-c", &script];
        let mut command = plyfs(who, place, &[]);
        let mut timed = Command::new(command.get_program());
        if who == Who::User {
            timed.args(["--reuid=4321", "--regid=4321", "--clear-groups", "timeout"]);
        } else {
            timed = Command::new("timeout");
        }
        command = timed;
        command.args(arguments).current_dir(place.at("")).env("XDG_STATE_HOME", place.at("state"));
        let output = command.output().unwrap();
        assert!(output.status.success(), "{who:?}: {output:?}");
        let lines: Vec<String> = text(&output.stdout).lines().map(str::to_owned).collect();
        assert_eq!(lines.len(), 1, "the state directory is empty in the view: {lines:?}");
        place.sh("rm -rf open/kept*");
    });
}

#[test]
fn what_is_kept_is_there_in_the_next_view_and_can_be_committed() {
    for_both("what_is_kept_is_there_in_the_next_view_and_can_be_committed", |who, place| {
        place.sh("mkdir -p open/target; echo old > open/target/f; chmod -R 777 open");
        let first = [
            "try",
            "--keep",
            "open/kept",
            "--",
            "sh",
            "-c",
            "echo new > open/target/f; mkdir open/target/dir",
        ];
        let output = succeed(&mut plyfs(who, place, &first));
        assert!(text(&output.stderr).contains("plyfs commit"), "{}", text(&output.stderr));
        assert_eq!(place.read("open/target/f"), "old\n");
        let second = ["try", "-q", "--keep", "open/kept", "--", "cat", "open/target/f"];
        assert_eq!(text(&succeed(&mut plyfs(who, place, &second)).stdout), "new\n");
        let kept = format!("open/kept{}", place.at("open/target").display());
        let arguments = ["commit", &kept, "--onto", "open/target", "--yes", "--ignore-owner"];
        succeed(&mut plyfs(who, place, &arguments));
        assert_eq!(place.read("open/target/f"), "new\n");
        assert!(place.at("open/target/dir").is_dir());
        assert_eq!(names(&place.at("open")), ["kept", "target"], "no work directory is left");
        place.sh("rm -rf open/*");
    });
}

#[test]
fn another_directory_is_shown_in_its_place_or_as_the_root_if_it_is_one() {
    for_both("another_directory_is_shown_in_its_place_or_as_the_root_if_it_is_one", |who, place| {
        place.sh("mkdir -p open/data open/root/bin open/root/etc; echo d > open/data/f; echo inner > open/root/etc/name
                  cp $(which busybox) open/root/bin/sh; chmod -R 777 open");
        let output = succeed(&mut plyfs(
            who,
            place,
            &["try", "--lower", "open/data", "--", "sh", "-c", "pwd; echo e > f; ls"],
        ));
        assert_eq!(text(&output.stdout), format!("{}\nf\n", place.at("open/data").display()));
        assert!(text(&output.stderr).contains("M f 2 B"), "{}", text(&output.stderr));
        assert_eq!(place.read("open/data/f"), "d\n");
        let script = "read line < /etc/name; echo $line; echo outer > /etc/name; test -e /proc/self && test -c /dev/null && echo there";
        let output =
            succeed(&mut plyfs(who, place, &["try", "--lower", "open/root", "--", "sh", "-c", script]));
        assert_eq!(text(&output.stdout), "inner\nthere\n");
        assert_eq!(place.read("open/root/etc/name"), "inner\n");
        assert_eq!(names(&place.at("open/root")), ["bin", "etc"]);
        place.sh("rm -rf open/*");
    });
}

#[test]
fn a_view_whose_plyfs_was_killed_before_it_could_know_does_not_begin() {
    as_root("a_view_whose_plyfs_was_killed_before_it_could_know_does_not_begin", |place| {
        place.write("low/f", "text");
        // Its parent is this test, not the process named.
        let orphan =
            ["try-stage", "supervise", "--parent", "999999", "--lower", "low", "--", "touch", "begun"];
        let said = fail(&mut place.plyfs(&orphan));
        assert!(said.contains("is gone"), "{said}");
        assert!(!place.at("low/begun").exists());
    });
}

#[test]
fn a_view_that_is_told_to_end_or_is_killed_leaves_nothing() {
    for_both("a_view_that_is_told_to_end_or_is_killed_leaves_nothing", |who, place| {
        for signal in ["TERM", "INT", "HUP", "KILL"] {
            let mut child = start_sleeping(who, place);
            place.sh(&format!("kill -{signal} {}", child.id()));
            child.wait().unwrap();
            wait_until("the view is gone", || names(&place.at("state")).is_empty());
            wait_until("its processes are gone", || {
                processes("plyfs try-stage").is_empty() && processes("sleep 100").is_empty()
            });
        }
    });
}

#[test]
fn what_a_killed_supervisor_left_is_removed_by_the_next_view() {
    for_both("what_a_killed_supervisor_left_is_removed_by_the_next_view", |who, place| {
        let mut child = start_sleeping(who, place);
        for pid in processes("plyfs try-stage supervise") {
            place.sh(&format!("kill -KILL {pid}"));
        }
        assert_eq!(child.wait().unwrap().code(), Some(137));
        wait_until("the command has ended with it", || processes("sleep 100").is_empty());
        assert_eq!(names(&place.at("state")).len(), 1);
        succeed(&mut plyfs(who, place, &["try", "-q", "--", "true"]));
    });
}

#[test]
fn the_changes_can_be_had_as_json() {
    for_both("the_changes_can_be_had_as_json", |who, place| {
        let script = "echo 12345 > /tmp/plyfs-new; rm /etc/hostname";
        place.sh("test -e /etc/hostname || echo test > /etc/hostname");
        let output = succeed(&mut plyfs(who, place, &["try", "--json", "--", "sh", "-c", script]));
        let said: serde_json::Value = serde_json::from_str(&text(&output.stderr)).unwrap();
        assert_eq!(
            (&said["added"], &said["deleted"], &said["size"]),
            (&1.into(), &1.into(), &6.into()),
            "{who:?}: {said}"
        );
        let paths: Vec<_> =
            said["changes"].as_array().unwrap().iter().map(|one| one["path"].as_str().unwrap()).collect();
        assert_eq!(paths, ["/etc/hostname", "/tmp/plyfs-new"]);
    });
}

#[test]
fn the_command_cannot_type_into_the_terminal_and_keeps_job_control() {
    for_both("the_command_cannot_type_into_the_terminal_and_keeps_job_control", |who, place| {
        if !need::met(&[Need::Tool("script"), Need::Tool("perl")]) {
            return;
        }
        // `script` gives the view a terminal; a shell with job control complains without one. 0x5412 is TIOCSTI, 1 is EPERM.
        place.write(
            "type.pl",
            "my $key = 'x'; print ioctl(STDIN, 0x5412, $key) ? 'TYPED' : $! == 1 ? 'refused' : $!, qq{\n};",
        );
        let (state, here) = (place.at("state"), place.at(""));
        let user = if who == Who::User { "setpriv --reuid=4321 --regid=4321 --clear-groups" } else { "" };
        let said = place.sh(&format!(
            "cd {here}; XDG_STATE_HOME={state} script -qec '{user} {PLYFS} try -q -- bash -ic \"perl {here}/type.pl; jobs -l; sleep 0 & wait; echo end\"' /dev/null < /dev/null",
            here = here.display(), state = state.display(),
        ));
        assert!(said.contains("refused") && said.contains("end"), "{who:?}: {said}");
        assert!(!said.contains("TYPED") && !said.contains("no job control"), "{who:?}: {said}");
    });
}

#[test]
fn ipc_is_the_views_own_and_so_is_the_network_if_asked() {
    for_both("ipc_is_the_views_own_and_so_is_the_network_if_asked", |who, place| {
        let outside = |name: &str| std::fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
        let inside = |options: &[&str], script: &str| {
            let arguments = [&["try", "-q"], options, &["--", "sh", "-c", script]].concat();
            text(&succeed(&mut plyfs(who, place, &arguments)).stdout).trim_end().to_owned()
        };
        assert_ne!(inside(&[], "readlink /proc/self/ns/ipc"), outside("ipc").to_str().unwrap());
        assert_eq!(inside(&[], "readlink /proc/self/ns/net"), outside("net").to_str().unwrap());
        let alone = inside(
            &["--network", "none"],
            "readlink /proc/self/ns/net; cat /proc/net/dev /proc/net/if_inet6",
        );
        assert!(!alone.contains(outside("net").to_str().unwrap()), "{who:?}: {alone}");
        assert_eq!(
            alone
                .lines()
                .filter(|line| line.contains(": "))
                .map(str::trim_start)
                .filter(|line| !line.starts_with("lo:"))
                .count(),
            0,
            "{who:?}: {alone}"
        );
        assert!(
            alone.contains("00000000000000000000000000000001") || !Path::new("/proc/net/if_inet6").exists(),
            "its loopback is up: {alone}"
        );
        let sys = inside(
            &["--network", "none"],
            "ls /sys/class/net
             mount -o remount,rw /sys 2>/dev/null && echo REMOUNTED
             mount -t sysfs none /mnt 2>/dev/null && echo WRITABLE
             test -z \"$(ls /sys/fs/cgroup)\" || echo cgroups",
        );
        let cgroups = std::fs::read_dir("/sys/fs/cgroup").is_ok_and(|mut all| all.next().is_some());
        assert_eq!(sys, if cgroups { "lo\ncgroups" } else { "lo" }, "{who:?}: its own /sys, and read-only");
    });
}

#[test]
fn a_view_can_be_made_within_a_view() {
    for_both("a_view_can_be_made_within_a_view", |who, place| {
        place.sh("test -e /etc/hostname || echo test > /etc/hostname");
        let inner = "rm /etc/hostname; test ! -e /etc/hostname && echo gone";
        let outer = format!("{PLYFS} try -q -- sh -c '{inner}' && test -e /etc/hostname && echo there");
        let output = succeed(&mut plyfs(who, place, &["try", "-q", "--", "sh", "-c", &outer]));
        assert_eq!(text(&output.stdout), "gone\nthere\n", "{who:?}: {}", text(&output.stderr));
    });
}

#[test]
fn the_command_gets_no_descriptor_of_the_machine_but_the_standard_ones() {
    as_root("the_command_gets_no_descriptor_of_the_machine_but_the_standard_ones", |place| {
        let script = "echo out; for fd in 3 9; do echo x > /proc/self/fd/$fd/escaped; done";
        let said = place.sh(&format!("exec 3<. 9<.; {PLYFS} try -q -- sh -c '{script}' 2> said || true; ls"));
        assert_eq!(said.lines().next(), Some("out"), "{said} {}", place.read("said"));
        assert!(!said.contains("escaped"), "{said}");
    });
}

#[test]
fn what_a_user_with_subordinate_ids_keeps_stays_the_users_own() {
    as_root("what_a_user_with_subordinate_ids_keeps_stays_the_users_own", |place| {
        let there =
            "command -v newuidmap newgidmap > /dev/null && test -f /etc/subuid -a -f /etc/subgid && echo yes";
        if place.sh(&format!("{there} || true")) != "yes\n" {
            eprintln!("skipped: newuidmap, /etc/subuid or /etc/subgid is missing");
            return;
        }
        place.dirs(&["scratch", "state", "open"]);
        sandbox::open_fuse_to_all(&place.at("scratch")).unwrap();
        place.sh("chmod 777 . state open
            (cat /etc/passwd; echo plyfs-test:x:4321:4321::/:/bin/sh) > scratch/passwd
            (cat /etc/group; echo plyfs-test:x:4321:) > scratch/group
            echo plyfs-test:100000:65536 | tee scratch/subuid > scratch/subgid
            for name in passwd group subuid subgid; do mount --bind scratch/$name /etc/$name; done");
        let arguments = ["try", "-q", "--keep", "open/kept", "--", "cat", "/proc/self/uid_map"];
        let map = text(&succeed(&mut plyfs(Who::User, place, &arguments)).stdout);
        assert!(map.contains("65536"), "subordinate ids are not used: {map}");
        assert_eq!(place.sh("stat -c %u:%g open/kept"), "4321:4321\n");
    });
}

#[test]
fn where_changes_cannot_be_kept_that_is_said_and_nothing_is_left() {
    for_both("where_changes_cannot_be_kept_that_is_said_and_nothing_is_left", |who, place| {
        place.sh("mkdir -m 777 open/shown open/shown/in");
        let refused = |keep: &str, lower: &str| {
            let arguments = ["try", "--keep", keep, "--lower", lower, "--", "true"];
            common::fail(&mut plyfs(who, place, &arguments))
        };
        for shown in ["open/shown", "open/shown/in"] {
            let said = refused("open/shown", shown);
            assert!(said.contains("in itself; name another directory"), "{who:?}: {said}");
        }
        assert!(refused("open/kept", "/nowhere").contains("/nowhere"), "{who:?}");
        place.write("open/file", "");
        refused("open/file", "open/shown");
        assert_eq!(names(&place.at("open")), ["file", "shown"], "{who:?}");

        let script = "echo started; echo x > f; read line";
        let first = ["try", "-q", "--keep", "open/kept", "--lower", "open/shown", "--", "sh", "-c", script];
        let mut command = plyfs(who, place, &first);
        let mut running = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(running.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "started\n");
        let before = names(&place.at("open"));
        let said = refused("open/kept", "open/shown");
        assert!(said.contains("open/kept: in use by another try"), "{who:?}: {said}");
        assert_eq!(names(&place.at("open")), before, "{who:?}");
        drop(running.stdin.take());
        running.wait().unwrap();
        assert_eq!(names(&place.at("open/kept")), ["f"], "{who:?}");
        place.sh("rm -r open/*");
    });
}

#[test]
fn a_file_system_with_a_long_path_is_kept_under_a_shorter_name() {
    as_root("a_file_system_with_a_long_path_is_kept_under_a_shorter_name", |place| {
        place.dirs(&["state", "open"]);
        let deep = format!("{0}/{0}", "d".repeat(150));
        place.dirs(&[&deep]);
        place.sh(&format!("mount -t tmpfs none {deep}"));
        let script = format!("echo x > {deep}/f");
        let arguments = ["try", "-q", "--keep", "open/kept", "--", "sh", "-c", &script];
        succeed(&mut plyfs(Who::Root, place, &arguments));
        let kept = names(&place.at("open"));
        let long = kept.iter().find(|name| name.contains("@@@")).unwrap();
        assert_eq!(names(&place.at("open").join(long)), ["f"]);
        place.sh(&format!("umount {deep}"));
    });
}
