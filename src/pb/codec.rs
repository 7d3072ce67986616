//! prost's codec with two differences. A message that cannot be decoded is an error of the caller
//! (INVALID_ARGUMENT with details), where tonic's codec returns INTERNAL. And a message that would
//! need far more memory than its bytes is not decoded.

use std::marker::PhantomData;

use bytes::Buf;
use prost::{Message, Name};
use tonic::Status;
use tonic::codec::{Codec as TonicCodec, DecodeBuf, Decoder as TonicDecoder};

use super::messages::{self, TooMany};
use crate::status::Refusal;

/// A message of up to this many bytes needs little memory, whatever it contains.
const MAX_UNCHECKED_BYTES: usize = 16 * 1024;

/// Encodes `T`, decodes `U`.
pub struct Codec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for Codec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T: Message + Send + 'static, U: Message + Name + Default + Send + 'static> TonicCodec
    for Codec<T, U>
{
    type Encode = T;
    type Decode = U;
    type Encoder = <tonic_prost::ProstCodec<T, U> as TonicCodec>::Encoder;
    type Decoder = Decoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        tonic_prost::ProstCodec::<T, U>::default().encoder()
    }

    fn decoder(&mut self) -> Self::Decoder {
        Decoder(PhantomData)
    }
}

/// Decodes one message.
pub struct Decoder<U>(PhantomData<U>);

impl<U: Message + Name + Default> TonicDecoder for Decoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, source: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        // The buffer is one contiguous chunk.
        if source.remaining() > MAX_UNCHECKED_BYTES
            && let Err(TooMany(max)) = messages::check(source.chunk(), &U::full_name())
        {
            return Err(Refusal::TooManyMessages(max).into());
        }
        U::decode(source)
            .map(Some)
            .map_err(|why| Refusal::Undecodable(why.to_string()).into())
    }
}
