use super::*;

fn new() -> (Cipher, Vec<u8>) {
    with("aes-256", "xts-plain64", "sha256")
}

fn with(cipher: &str, mode: &str, hash: &str) -> (Cipher, Vec<u8>) {
    let new = header_of(cipher, mode, hash).unwrap();
    Luks::create(b"sesame", &new).unwrap()
}

fn header_of(cipher: &str, mode: &str, hash: &str) -> Result<NewLuks, CryptError> {
    let cipher = CipherSpec::named(cipher, mode)?;
    NewLuks::new(cipher, hash, Duration::ZERO, Uuid::from_u128(7))
}

#[test]
fn headers_that_qemu_does_not_read_are_not_made() {
    for cipher in ["aes-192", "serpent-192", "twofish-192"] {
        for mode in ["cbc-plain64", "ctr-plain64", "ecb-plain64"] {
            let refused = header_of(cipher, mode, "sha256").unwrap_err();
            let cipher = format!("{cipher}-{mode}");
            assert_eq!(
                refused,
                CryptError::Ragged {
                    cipher,
                    len: 96_000
                }
            );
        }
        header_of(cipher, "xts-plain64", "sha256").unwrap();
    }
    let refused = header_of("aes-256", "xts-plain64", "whirlpool").unwrap_err();
    assert!(refused.to_string().contains("'whirlpool' is not supported"));
}

#[test]
fn every_cipher_and_hash_keeps_its_key() {
    for (cipher, mode, hash) in [
        ("aes-128", "xts-plain", "sha1"),
        ("aes-128", "cbc-essiv:sha256", "sha512"),
        ("aes-256", "cbc-plain64", "sha256"),
        ("serpent-192", "xts-essiv:sm3", "md5"),
        ("twofish-256", "ctr-plain64", "sha384"),
        ("cast5-128", "ecb-essiv:md5", "ripemd160"),
    ] {
        let (cipher, header) = with(cipher, mode, hash);
        let mut sector = [9; SECTOR];
        cipher.encrypt(77, &mut sector);
        unlock(&header, b"sesame").unwrap().decrypt(77, &mut sector);
        assert_eq!(sector, [9; SECTOR], "{mode}");
    }
}

fn head(header: &[u8]) -> [u8; Luks::LEN] {
    header[..Luks::LEN].try_into().unwrap()
}

fn unlock(header: &[u8], passphrase: &[u8]) -> Result<Cipher, CryptError> {
    let luks = Luks::parse(&head(header), header.len() as u64)?;
    luks.unlock(passphrase, |slot, buf| {
        buf.copy_from_slice(&header[slot.offset as usize..][..buf.len()]);
        Ok(())
    })
}

#[test]
fn rounds_are_those_that_are_done() {
    for (cipher, mode, hash, of_key, of_digest) in [
        ("aes-256", "xts-plain64", "sha256", 2, 1),
        ("aes-256", "xts-plain64", "sha1", 4, 1),
        ("aes-128", "cbc-plain64", "sha256", 1, 1),
        ("aes-256", "cbc-plain64", "md5", 2, 2),
    ] {
        let (_, header) = with(cipher, mode, hash);
        let luks = Luks::parse(&head(&header), header.len() as u64).unwrap();
        let slot = luks.slots().next().unwrap();
        let least = u64::from(LEAST_ROUNDS);
        assert_eq!(
            luks.rounds_of(&slot),
            least * (of_key + of_digest),
            "{hash}"
        );
    }
}

/// Whoever tries a passphrase pays for them; nobody else does.
#[test]
fn any_number_of_rounds_can_be_looked_at() {
    let (_, header) = new();
    let mut head = head(&header);
    head[212..216].copy_from_slice(&u32::MAX.to_be_bytes());
    let luks = Luks::parse(&head, header.len() as u64).unwrap();
    let slot = luks.slots().next().unwrap();
    assert_eq!(slot.rounds, u32::MAX);
    assert!(luks.rounds_of(&slot) > u64::from(u32::MAX));
}

#[test]
fn passphrase_opens_what_it_locked_and_no_other_does() {
    let (cipher, header) = new();
    let mut sector = [9; SECTOR];
    cipher.encrypt(77, &mut sector);
    unlock(&header, b"sesame").unwrap().decrypt(77, &mut sector);
    assert_eq!(sector, [9; SECTOR]);
    for wrong in [&b"sesam"[..], b"sesame ", b""] {
        assert_eq!(unlock(&header, wrong).unwrap_err(), CryptError::Passphrase);
    }
}

/// 24 bytes, 4000 times, are no whole number of sectors.
#[test]
fn key_of_192_bits_is_looked_for() {
    let (_, mut header) = new();
    header[40..72].fill(0);
    header[40..51].copy_from_slice(b"cbc-plain64");
    header[108..112].copy_from_slice(&24_u32.to_be_bytes());
    assert_eq!(
        unlock(&header, b"sesame").unwrap_err(),
        CryptError::Passphrase
    );
}

#[test]
fn key_material_that_lost_a_bit_holds_no_key() {
    let (_, mut header) = new();
    header[200_000] ^= 1;
    assert_eq!(
        unlock(&header, b"sesame").unwrap_err(),
        CryptError::Passphrase
    );
}

#[test]
fn headers_that_break_a_rule_are_refused() {
    let (_, header) = new();
    let refused = |at: usize, bytes: &[u8]| {
        let mut head = head(&header);
        head[at..at + bytes.len()].copy_from_slice(bytes);
        Luks::parse(&head, header.len() as u64).unwrap_err()
    };
    let be = u32::to_be_bytes;
    assert_eq!(refused(0, b"l"), CryptError::Magic);
    assert_eq!(refused(7, &[2]), CryptError::Version { found: 2 });
    assert!(
        refused(8, b"blowfish")
            .to_string()
            .contains("'blowfish' is not supported")
    );
    assert!(
        refused(40, b"ecb-null\0\0\0\0")
            .to_string()
            .contains("'null' is not supported")
    );
    assert!(refused(72, b"whirlpool").to_string().contains("whirlpool"));
    assert_eq!(refused(72, b"\x1b"), CryptError::Name { what: "hash" });
    assert!(matches!(
        refused(108, &be(63)),
        CryptError::KeyLength { .. }
    ));
    assert!(matches!(
        refused(108, &be(u32::MAX)),
        CryptError::KeyLength { .. }
    ));
    assert!(matches!(refused(164, &be(0)), CryptError::Rounds));
    assert!(matches!(
        refused(208, &be(7)),
        CryptError::SlotState { slot: 0, found: 7 }
    ));
    assert!(matches!(refused(212, &be(0)), CryptError::Rounds));
    assert!(matches!(
        refused(248, &be(u32::MAX)),
        CryptError::SlotOutside { .. }
    ));
    assert!(matches!(
        refused(252, &be(1)),
        CryptError::Stripes { slot: 0, found: 1 }
    ));
}

/// Free slots have a place, too: who takes or wipes one must not hit another.
#[test]
fn every_slot_has_a_place_of_its_own() {
    let (_, header) = new();
    let refused = |numbers: &[(usize, u32)]| {
        let mut head = head(&header);
        for (at, number) in numbers {
            head[*at..at + 4].copy_from_slice(&number.to_be_bytes());
        }
        Luks::parse(&head, header.len() as u64).unwrap_err()
    };
    let (offset, stripes) = (|nth: usize| 248 + 48 * nth, |nth: usize| 252 + 48 * nth);
    let overlap = |first, second, apart| CryptError::SlotsOverlap {
        first,
        second,
        len: 504 * 512,
        apart,
    };
    // Sectors: slots take 504 each, the first one is at 8, and data starts at 4040.
    for (found, expected) in [
        (refused(&[(offset(1), 8)]), overlap(0, 1, 0)),
        (refused(&[(offset(1), 511)]), overlap(0, 1, 503 * 512)),
        (refused(&[(offset(7), 3500)]), overlap(6, 7, 468 * 512)),
        (refused(&[(offset(1), 2024)]), overlap(1, 4, 0)),
        (
            refused(&[(offset(0), 1)]),
            CryptError::SlotInHeader {
                slot: 0,
                offset: 512,
                end: 4096,
            },
        ),
        (
            refused(&[(offset(1), 0)]),
            CryptError::SlotInHeader {
                slot: 1,
                offset: 0,
                end: 4096,
            },
        ),
        (
            refused(&[(offset(7), 3537)]),
            CryptError::SlotInPayload {
                slot: 7,
                offset: 3537 * 512,
                len: 504 * 512,
                payload: 4040 * 512,
            },
        ),
        (
            refused(&[(104, 4039)]),
            CryptError::SlotInPayload {
                slot: 7,
                offset: 3536 * 512,
                len: 504 * 512,
                payload: 4039 * 512,
            },
        ),
        (
            refused(&[(104, 7)]),
            CryptError::Payload {
                found: 7 * 512,
                end: 4096,
            },
        ),
        (
            refused(&[(stripes(3), 0)]),
            CryptError::Stripes { slot: 3, found: 0 },
        ),
    ] {
        assert_eq!(found, expected);
    }
}

#[test]
fn slots_that_stand_elsewhere_are_read() {
    let (_, header) = new();
    let mut head = head(&header);
    let mut put = |at: usize, number: u32| {
        head[at..at + 4].copy_from_slice(&number.to_be_bytes());
    };
    // Others may leave gaps, count in another order, and keep the rounds of a slot that was used;
    // in qcow2 nothing stands where data would start.
    put(248 + 48, 3536);
    put(248 + 48 * 7, 512);
    put(248 + 48 * 6, 50_000);
    put(212 + 48, 7);
    put(104, u32::MAX);
    Luks::parse(&head, header.len() as u64).unwrap();
}

#[test]
fn slot_without_passphrase_cannot_lose_one() {
    let (_, mut header) = new();
    let before = header.clone();
    let mut luks = Luks::parse(&head(&header), header.len() as u64).unwrap();
    for slots in [&[3][..], &[0, 3]] {
        let refused = luks.remove_slots(&mut header, slots).unwrap_err();
        assert_eq!(refused, CryptError::SlotFree { slot: 3 });
    }
    assert!(header == before);
    assert_eq!(
        luks.remove_slots(&mut header, &[0]),
        Err(CryptError::LastSlot)
    );
}

#[test]
fn any_bit_of_a_header_may_be_wrong() {
    let (_, header) = new();
    for bit in 0..8 * Luks::LEN {
        let mut head = head(&header);
        head[bit / 8] ^= 1 << (bit % 8);
        let _ = Luks::parse(&head, header.len() as u64);
    }
}
