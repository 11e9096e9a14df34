#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let mut file = data.to_vec();
    goldsmith_testkit::build::qcow2::fix_up(&mut file);
    goldsmith_testkit::fuzz::convert(
        &goldsmith_qcow2::QCOW2,
        &file,
        &[
            &goldsmith_raw::RAW,
            &goldsmith_qcow2::QCOW2,
            &goldsmith_vhd::VHD,
        ],
    );
});
