//! The drawings in README.md say what the code writes.

use logdrive_raft::limits::{ENTRY_HEADER_BYTES, TABLE_LENGTH_BYTES, TABLE_ROW_BYTES};
use logdrive_raft::wire::Encode;
use logdrive_raft::{
    Boot, Chain, ClusterId, EntryBuilder, GroupId, Incarnation, Index, NodeId, ProposalRow, Term,
};
use logdrive_wal::disk::{BLOCK_BYTES, Block};
use logdrive_wal::format::*;

const README: &str = include_str!("../../README.md");

/// A field as it is drawn.
#[derive(Clone, Copy, Debug)]
struct Field {
    offset: usize,
    name: &'static str,
    /// None: its length varies, or it stands for all that follows.
    bytes: Option<usize>,
}

/// The lines drawn under a title, and how many bytes the title says they take.
fn drawing(title: &str) -> (Vec<&'static str>, Option<usize>) {
    let title = format!("**{title}**");
    let begin = README.find(&format!("\n{title}"));
    let begin = begin.unwrap_or_else(|| panic!("{title} is not drawn"));
    let (head, rest) = README[begin + 1..].split_once("```text\n").unwrap();
    let (lines, _) = rest.split_once("```").unwrap();
    let words: Vec<&str> = head.split_whitespace().collect();
    let stated = words.windows(2).find_map(|two| {
        let bytes = two[1].starts_with("bytes");
        bytes.then(|| two[0].parse::<usize>().ok()).flatten()
    });
    (lines.lines().collect(), stated)
}

/// The field that words after an offset speak of.
fn field(offset: usize, words: &[&'static str]) -> Field {
    let bytes = match words.get(1).copied() {
        Some("u8") => Some(1),
        Some("u16") => Some(2),
        Some("u32") => Some(4),
        Some("u64") => Some(8),
        Some("u128") => Some(16),
        Some("place") => Some(12),
        Some("position") => Some(32),
        _ => None,
    };
    Field {
        offset,
        name: words[0].trim_end_matches([':', ',']),
        bytes,
    }
}

/// The fields of a drawing with one a line, and the bytes that its title states. They lie side by side.
fn fields(title: &str) -> (Vec<Field>, usize) {
    let (lines, stated) = drawing(title);
    let stated = stated.unwrap_or_else(|| panic!("{title} does not say how long it is"));
    let fields = lines.iter().map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        field(words[0].parse().unwrap(), &words[1..])
    });
    let mut fields: Vec<Field> = fields.collect();
    let end = fields[0].offset + stated;
    if fields.last().unwrap().bytes.is_none() {
        assert_eq!(fields.pop().unwrap().offset, end, "what follows {title}");
    }
    assert_eq!(end_of(title, &fields), end, "{title}");
    (fields, stated)
}

/// Where the last of these fields ends; each begins where the one before it does.
fn end_of(title: &str, fields: &[Field]) -> usize {
    fields.iter().fold(fields[0].offset, |at, field| {
        assert_eq!(field.offset, at, "{title}: {}", field.name);
        at + field.bytes.unwrap_or(0)
    })
}

/// What a field holds: all of a number, the first word of anything else.
fn value(bytes: &[u8], field: &Field) -> u128 {
    let number = field
        .bytes
        .filter(|bytes| matches!(bytes, 1 | 2 | 4 | 8 | 16));
    let length = number.unwrap_or(8);
    let mut word = [0; 16];
    word[..length].copy_from_slice(&bytes[field.offset..][..length]);
    u128::from_le_bytes(word)
}

/// Every field that is drawn, and no other, has the value expected where it is drawn.
fn check_values(title: &str, bytes: &[u8], expected: &[(&str, u128)]) {
    let (fields, _) = fields(title);
    let read: Vec<(&str, u128)> = fields
        .iter()
        .map(|field| (field.name, value(bytes, field)))
        .collect();
    assert_eq!(read, expected, "{title}");
}

fn magic(bytes: &[u8]) -> u128 {
    let mut word = [0; 16];
    word[..bytes.len()].copy_from_slice(bytes);
    u128::from_le_bytes(word)
}

fn slot_header() -> SlotHeader {
    SlotHeader {
        by_recovery: true,
        compatible: 0x80,
        log_uuid: 21,
        cluster: ClusterId(22),
        node: NodeId(23),
        incarnation: Incarnation(24),
        slot: 25,
        slot_blocks: 26,
        segment: 27,
        epoch: Boot(28),
        predecessor_epoch: Boot(29),
        predecessor_end: Place {
            segment: 30,
            block: 31,
        },
        predecessor_chain: Chain(32),
        oldest: 33,
    }
}

#[test]
fn drawings_are_as_long_as_the_code_says() {
    assert_eq!(fields("Slot header").1, slot_header().to_bytes().len());
    assert_eq!(fields("Flush group header").1, GROUP_HEADER_BYTES);
    assert_eq!(fields("Frame").1, ENTRY_HEADER_BYTES);
    assert_eq!(fields("Proposal row").1, TABLE_ROW_BYTES);
    assert_eq!(
        fields("Proposal row").0[0].bytes,
        Some(TABLE_LENGTH_BYTES),
        "a row of lengths"
    );
    let (stamp, bytes) = fields("Stamp");
    assert_eq!(
        (stamp[0].offset, bytes),
        (BLOCK_DATA_BYTES, BLOCK_BYTES - BLOCK_DATA_BYTES)
    );
    assert_eq!(SLOT_HEADER_BLOCKS, 2, "in blocks 0 and 1");
}

#[test]
fn a_slot_header_is_as_drawn() {
    let block = slot_header().to_blocks()[1];
    let expected = [
        ("magic", magic(b"LDslot\0\0")),
        ("version", WAL_VERSION.into()),
        ("flags", 1),
        ("incompatible", 0),
        ("compatible", 0x80),
        ("block_bytes", BLOCK_BYTES as u128),
        ("log_uuid", 21),
        ("cluster", 22),
        ("node", 23),
        ("incarnation", 24),
        ("slot", 25),
        ("slot_blocks", 26),
        ("segment", 27),
        ("epoch", 28),
        ("predecessor", 30),
        ("predecessor_epoch", 29),
        ("predecessor_end", 31),
        ("zero", 0),
        ("predecessor_chain", 32),
        ("oldest", 33),
    ];
    check_values("Slot header", &block.0, &expected);
}

#[test]
fn a_stamp_is_as_drawn() {
    let header = slot_header();
    let mut block = Block([0x5a; BLOCK_BYTES]);
    header.stamper().stamp(&mut block, 7, true);
    let seed = crc32c::crc32c(&header.log_uuid.to_le_bytes());
    let crc = crc32c::crc32c_append(seed, &block.0[..4092]);
    let expected = [
        ("block", (1 << 31) | 7),
        ("segment", 27),
        ("epoch", 28),
        ("crc", crc.into()),
    ];
    check_values("Stamp", &block.0, &expected);
}

#[test]
fn a_flush_group_header_is_as_drawn() {
    let place = |segment, block| Place { segment, block };
    let header = GroupHeader {
        kind: GroupKind::Seal,
        compatible: 0x80,
        cluster: ClusterId(41),
        incarnation: Incarnation(42),
        boot: Boot(43),
        place: place(44, 45),
        blocks: 46,
        number: 47,
        mark: place(48, 49),
        table_bytes: 50,
        echo_bytes: 51,
        body_bytes: 52,
        records: 53,
        echo_records: 54,
        digest: 55,
        previous: Chain(56),
    };
    let (bytes, chain) = header.seal();
    assert_eq!(chain.0, xxhash_rust::xxh3::xxh3_128(&bytes[..144]));
    let expected = [
        ("magic", magic(b"LDfg")),
        ("version", WAL_VERSION.into()),
        ("kind", 3),
        ("zero", 0),
        ("incompatible", 0),
        ("compatible", 0x80),
        ("cluster", 41),
        ("incarnation", 42),
        ("boot", 43),
        ("segment", 44),
        ("block", 45),
        ("blocks", 46),
        ("number", 47),
        ("mark_segment", 48),
        ("mark_block", 49),
        ("table_bytes", 50),
        ("echo_bytes", 51),
        ("body_bytes", 52),
        ("records", 53),
        ("echo_records", 54),
        ("digest", 55),
        ("previous", 56),
        ("chain", chain.0),
    ];
    check_values("Flush group header", &bytes, &expected);
}

#[test]
fn a_frame_and_its_rows_are_as_drawn() {
    let row = ProposalRow {
        length: 3,
        kind: 61,
        session: 62,
        sequence: 63,
        acknowledged_through: 64,
    };
    let mut builder = EntryBuilder::with_room(2, 8);
    builder.push_row(row, b"abc");
    builder.push(b"de");
    let entry = builder
        .finish()
        .seal(GroupId(65), Term(66), Index(67), Chain(68));
    let frame = entry.frame();
    let (table, payload) = frame[ENTRY_HEADER_BYTES..].split_at(2 * TABLE_ROW_BYTES);
    assert_eq!(payload, b"abcde");
    let header_crc = crc32c::crc32c_append(crc32c::crc32c(&frame[..60]), &frame[64..80]);
    let mut chained = 68_u128.to_le_bytes().to_vec();
    chained.extend_from_slice(&frame[..60]);
    let expected = [
        ("magic", magic(b"LDen")),
        ("version", 1),
        ("kind", 2),
        ("table", 2),
        ("incompatible", 0),
        ("compatible", 0),
        ("group", 65),
        ("term", 66),
        ("index", 67),
        ("count", 2),
        ("table_bytes", table.len() as u128),
        ("payload_bytes", 5),
        ("table_crc", crc32c::crc32c(table).into()),
        ("payload_crc", crc32c::crc32c(payload).into()),
        ("header_crc", header_crc.into()),
        ("chain", xxhash_rust::xxh3::xxh3_128(&chained)),
    ];
    check_values("Frame", frame, &expected);
    let expected = [
        ("length", 3),
        ("kind", 61),
        ("session", 62),
        ("sequence", 63),
        ("acknowledged_through", 64),
    ];
    check_values("Proposal row", table, &expected);
}

#[test]
fn a_footer_row_is_as_drawn() {
    let row = FooterRow {
        block: 71,
        group: GroupId(72),
        rewrite: true,
        first: Index(73),
        last: Index(74),
        last_term: Term(75),
    };
    let bytes = row.to_bytes();
    assert_eq!(fields("Footer row").1, bytes.len());
    let expected = [
        ("block", 71),
        ("group", 72),
        ("rewrite", 1),
        ("first", 73),
        ("last", 74),
        ("last_term", 75),
    ];
    check_values("Footer row", &bytes, &expected);
}

/// The records as they are drawn: number, name, fields; `end` is one of them.
fn drawn_records() -> Vec<(u8, &'static str, Vec<Field>)> {
    let mut records: Vec<(u8, &str, Vec<Field>)> = Vec::new();
    for line in drawing("Records").0 {
        let words: Vec<&str> = line.split_whitespace().collect();
        let Ok(number) = words[0].parse::<u8>() else {
            continue;
        };
        let at = (2..words.len()).filter_map(|at| Some((at, words[at].parse::<usize>().ok()?)));
        let fields = at.map(|(at, offset)| field(offset, &words[at + 1..]));
        records.push((number, words[1], fields.collect()));
    }
    records
}

/// What the golden bytes of a record hold in a field: see golden.rs.
fn golden_value(record: &str, field: &str) -> u128 {
    match (record, field) {
        ("mention", "group") => 0,
        (_, "group") => 1,
        ("genesis", "cluster") => 0xc1,
        ("entries" | "rewrite", "prev") => 10,
        ("entries" | "rewrite", "last") => 12,
        ("entries" | "rewrite", "bytes") => 999,
        ("truncate", "to") => 11,
        ("base", "base") | ("anchor", "at") => 2,
        ("configuration", "at") => 5,
        ("hard-state", "term") => 8,
        ("checkpoint" | "footer", "count") => 1,
        ("verdict", "kind") => 2,
        ("verdict", "end") => 8,
        ("verdict", "chain") => 0xbbbb,
        ("verdict", "boot") => 4,
        ("mention", "kind") => RecordKind::Checkpoint as u128,
        // Counts and options.
        (_, "voters" | "membership") => 3,
        ("base", "snapshot") | ("verdict", "holes") => 1,
        ("hard-state", "vote") => 0,
        ("checkpoint", "rows") => 0xc1,
        ("footer", "rows") => 7,
        other => panic!("{other:?} is drawn and not compared"),
    }
}

#[test]
fn records_are_as_drawn() {
    let records = drawn_records();
    let numbers: Vec<u8> = records.iter().map(|record| record.0).collect();
    let all: Vec<u8> = (1..=RecordKind::Mention as u8).collect();
    assert_eq!(numbers, all);
    for (number, name, mut fields) in records {
        let path = format!(
            "{}/tests/golden/record-{number:02}-{name}.hex",
            env!("CARGO_MANIFEST_DIR")
        );
        let hex = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        let digits: String = hex.split_whitespace().collect();
        let bytes: Vec<u8> = (0..digits.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap())
            .collect();
        assert_eq!(bytes[0], number, "{name}");
        assert_eq!(fields[0].offset, 1, "{name}");
        end_of(name, &fields);
        // What has no fixed length stands last, and is known by its first byte.
        let last = fields.pop_if(|field| field.bytes.is_none());
        let last = last.unwrap_or_else(|| panic!("{name} has no end"));
        if last.name == "end" {
            assert_eq!(last.offset, bytes.len(), "{name}");
        } else {
            let bytes = Some(1);
            fields.push(Field { bytes, ..last });
        }
        for field in &fields {
            assert!(field.bytes.is_some(), "{name}: {}", field.name);
            let expected = golden_value(name, field.name);
            assert_eq!(value(&bytes, field), expected, "{name}: {}", field.name);
        }
    }
}

#[test]
fn rows_lie_where_they_are_drawn() {
    // After the count, up to the end: one row of a footer, whose length is stated.
    let footer = Record::Footer(vec![FooterRow {
        block: 71,
        group: GroupId(72),
        rewrite: false,
        first: Index(73),
        last: Index(74),
        last_term: Term(75),
    }]);
    let rows = drawn_records()
        .into_iter()
        .find(|record| record.1 == "footer");
    let rows_at = rows.unwrap().2.last().unwrap().offset;
    assert_eq!(footer.to_bytes().len(), rows_at + fields("Footer row").1);
}
