//! A flag that is mistyped, out of range or in the wrong company: what is said, and that it is exit 2.

use std::process::Command;

/// The arguments, parted by `|`, and what has to be said about them.
const CASES: [(&str, &str); 26] = [
    ("--warmup|2 sec", "did you mean `2s`?"),
    ("--timeout|5S", "did you mean `5s`?"),
    ("--clients|8x", "--clients"),
    ("--clients|0", "--clients must lie between 1 and 10000"),
    ("--in-flight|1Mio", "--in-flight"),
    ("--keys|0", "--keys must lie between 1 and"),
    ("--groups|5000", "--groups must lie between 1 and 4096"),
    ("--seed|x", "--seed"),
    ("--mtu|ethernt", "'ethernet'"),
    ("--arrival|poison", "'poisson'"),
    ("--apply|inlin", "'inline'"),
    ("--size|2MiB", "--size can be"),
    ("--rate|0", "--rate must lie between"),
    (
        "--duration|0s",
        "--duration and --timeout must be longer than 0s",
    ),
    ("--fault|12s kill-leader", "lies outside --duration 10s"),
    ("--fault|kill-leader", "write it like `5s kill-leader`"),
    ("--target|spawn:0", "write it like `spawn:3`"),
    ("--target|spawn", "write it like `spawn:3`"),
    ("--target|cluster|here", "names no addresses"),
    ("--target|cluster|10.0.0.1:7002", "logdrive tls issue"),
    ("--tls|d", "--tls is for --target cluster"),
    (
        "--target|inproc:3|--keep",
        "--keep leaves processes running",
    ),
    ("--target|cluster|a:1|--tls|d|--verify", "--target spawn:N"),
    ("--verfy", "a similar argument exists: '--verify'"),
    ("--in-fligt|5", "a similar argument exists: '--in-flight'"),
    ("--wal-backend", "a value is required"),
];

#[test]
fn every_flag_says_what_would_be_right() {
    for (arguments, expected) in CASES {
        let output = Command::new(env!("CARGO_BIN_EXE_loadgen"))
            .args(arguments.split('|'))
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments}: {error}");
        assert!(error.contains(expected), "{arguments}: {error}");
        assert!(output.stdout.is_empty(), "{arguments}");
    }
}
