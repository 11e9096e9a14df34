#![no_main]
use goldsmith::{Cache, Convert};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let file = goldsmith_testkit::build::ovf::fix_up(data);
    let format = goldsmith::format_named("xenserver-ovf").expect("there is one");
    goldsmith_testkit::fuzz::in_one_pass(format, &file, |source, target| {
        let convert = Convert::new(source, target).source_format(format.name());
        convert.target_format("raw").cache(Cache::Unsafe).run()?;
        Ok(())
    });
});
