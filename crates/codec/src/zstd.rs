//! Zstandard frames.

use zstd::zstd_safe::{
    CCtx, CParameter, DCtx, DParameter, ErrorCode, InBuffer, OutBuffer, ResetDirective,
    get_error_name,
    zstd_sys::{ZSTD_EndDirective, ZSTD_ErrorCode},
};

use crate::CodecError;

/// The library's default, which qemu-img packs with. [qemu]
const LEVEL: i32 = 3;

/// Base-2 logarithm of the largest window a frame may ask for. [ours]
///
/// The largest unit is 2 MiB, a frame of known size needs no more, and level 19 asks for 8 MiB
/// when it does not know the size. The library's own limit, 128 MiB per thread, is too much to
/// give to a stranger.
const WINDOW_LOG_MAX: u32 = 23;

pub(crate) struct Unpacker(DCtx<'static>);

impl Unpacker {
    pub(crate) fn new() -> Result<Self, CodecError> {
        let mut context = DCtx::try_create().ok_or_else(no_context)?;
        let limit = DParameter::WindowLogMax(WINDOW_LOG_MAX);
        context.set_parameter(limit).map_err(library)?;
        Ok(Self(context))
    }

    /// Says how many bytes of `packed` that took.
    pub(crate) fn unpack(&mut self, packed: &[u8], unit: &mut [u8]) -> Result<usize, CodecError> {
        self.0.reset(ResetDirective::SessionOnly).map_err(library)?;
        let len = unit.len();
        let mut input = InBuffer::around(packed);
        let mut output = OutBuffer::around(unit);
        // Frame after frame, until the unit is full at the end of one. [qemu]
        while output.pos() < len {
            let before = (input.pos(), output.pos());
            let open = self.0.decompress_stream(&mut output, &mut input);
            let open = open.map_err(damage)?;
            if output.pos() == len && open != 0 {
                return Err(CodecError::Long { unit: len });
            }
            if (input.pos(), output.pos()) == before {
                return Err(CodecError::Short {
                    found: output.pos(),
                    unit: len,
                });
            }
        }
        Ok(input.pos())
    }
}

pub(crate) struct Packer(CCtx<'static>);

impl Packer {
    pub(crate) fn new() -> Result<Self, CodecError> {
        let mut context = CCtx::try_create().ok_or_else(no_context)?;
        let level = CParameter::CompressionLevel(LEVEL);
        context.set_parameter(level).map_err(library)?;
        Ok(Self(context))
    }

    /// Packs `unit` as one frame into the front of `room`; `None` if it does not fit.
    pub(crate) fn pack(
        &mut self,
        unit: &[u8],
        room: &mut [u8],
    ) -> Result<Option<usize>, CodecError> {
        self.0.reset(ResetDirective::SessionOnly).map_err(library)?;
        let mut input = InBuffer::around(unit);
        let mut output = OutBuffer::around(room);
        let end = ZSTD_EndDirective::ZSTD_e_end;
        let left = self.0.compress_stream2(&mut output, &mut input, end);
        Ok((left.map_err(library)? == 0).then(|| output.pos()))
    }
}

/// What is wrong with packed bytes that the library refuses.
fn damage(code: ErrorCode) -> CodecError {
    const TOO_LARGE: usize = ZSTD_ErrorCode::ZSTD_error_frameParameter_windowTooLarge as usize;
    // The library returns its errors negated.
    if code.wrapping_neg() == TOO_LARGE {
        let limit = 1 << WINDOW_LOG_MAX;
        return CodecError::Window { limit };
    }
    let reason = get_error_name(code);
    CodecError::Zstd { reason }
}

fn no_context() -> CodecError {
    CodecError::Library {
        codec: "zstd",
        reason: "it has no memory for a context",
    }
}

fn library(code: ErrorCode) -> CodecError {
    CodecError::Library {
        codec: "zstd",
        reason: get_error_name(code),
    }
}
