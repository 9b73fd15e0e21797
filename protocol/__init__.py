"""The wire protocol of Durable: its words, its bytes, its refusals. Pure: no I/O, no clock, no state.

`signing` signs and verifies, `strict_json` refuses JSON that some language could not carry unchanged, `messages`
turns bytes into structs and back, `ops` holds what an invocation reports, `manifest` what an app offers; `names`,
`durations` and `limits` hold the small rules. SPEC.md beside this file is the contract, `vectors/` are examples with
their answers, `schema/` the shapes. Whatever bytes come, `verify` raises `SignatureError` and the decoders
`MessageRefused` (`JsonRefused` is one), and nothing else.
"""
