"""What of a row of the log the books seal: one fingerprint, for audits and for what sets a cost anew."""

from __future__ import annotations

from typing import Final

# What is hashed is written out: a column that is added later must not change what was sealed before. Units
# came later, so they count only where a row has some.
CONTENT_HASH: Final = """(hash_record_extended(ROW(
               id, user_id, feature, provider, model, input_tokens, output_tokens, cache_read_tokens,
               cache_write_tokens, reasoning_tokens, tokens_used, cost_usd, cost_reported_usd,
               cost_computed_usd, cost_source, payload_hash, occurred_at, received_at, corrects, void
           ), 0) # CASE WHEN units IS NULL THEN 0 ELSE hash_record_extended(ROW(id, units), 0) END)"""
