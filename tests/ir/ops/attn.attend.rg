graph @valid (%q: bf16[B, T, 8, 16], %k, %v: bf16[B, T, 4, 16], %six: bf16[B, T, 6, 16], %s: bf16[8]) {
  %m = state.kv %k, %v
  %short = state.kv %k, %v {window = 512} : memory<bf16; k [4, 16], v [4, 16]; window 512>
  %ctx = attn.attend %q, %m {scale = 0.25} : bf16[B, T, 8, 16]
  %near = attn.attend %q, %short {scale = 0.25, window = 512} : bf16[B, T, 8, 16]
  %uneven = attn.attend %six, %m {scale = 0.25, head_map = [0, 0, 0, 1, 2, 3]} : bf16[B, T, 6, 16]
  %sunk = attn.attend %q, %m, sink=%s {scale = 0.25} : bf16[B, T, 8, 16]
  %capped = attn.attend %q, %m {scale = 0.25, softcap = 50.0} : bf16[B, T, 8, 16]
  return %ctx, %near, %uneven, %sunk, %capped
}

// -----

graph @uneven_groups (%q: bf16[B, T, 6, 16], %k, %v: bf16[B, T, 4, 16]) {
  %m = state.kv %k, %v
  %layers.3.attn.ctx = attn.attend %q, %m {scale = 0.25} : bf16[B, T, 6, 16]
  return %layers.3.attn.ctx
}
// ERROR: error[RG031]: attn.attend: 6 query heads over 4 key/value heads need a head_map
//          --> attn.attend.rg:16:24   layers.3.attn
//            16 |   %layers.3.attn.ctx = attn.attend %q, %m {scale = 0.25} : bf16[B, T, 6, 16]
//               |                        ^^^^^^^^^^^
//          = help: give head_map, or keep a multiple of 4 query heads

// -----

graph @map_of_another_length (%q: bf16[B, T, 6, 16], %k, %v: bf16[B, T, 4, 16]) {
  %m = state.kv %k, %v
  %ctx = attn.attend %q, %m {scale = 0.25, head_map = [0, 1, 2, 3]}
  return %ctx
}
// ERROR: error[RG032]: attn.attend: head_map [0, 1, 2, 3] does not fit 6 query heads over 4 key/value heads

// -----

graph @map_beyond_the_heads (%q: bf16[B, T, 2, 16], %k, %v: bf16[B, T, 4, 16]) {
  %m = state.kv %k, %v
  %ctx = attn.attend %q, %m {scale = 0.25, head_map = [0, 4]}
  return %ctx
}
// ERROR: error[RG032]: attn.attend: head_map [0, 4] does not fit 2 query heads over 4 key/value heads

// -----

graph @wider_than_the_memory (%q: bf16[B, T, 8, 16], %k, %v: bf16[B, T, 4, 16]) {
  %m = state.kv %k, %v {window = 512}
  %ctx = attn.attend %q, %m {scale = 0.25, window = 1024}
  return %ctx
}
// ERROR: error[RG033]: attn.attend: looks back 1024 rows in a memory that keeps 512

// -----

graph @unlimited_in_a_window (%q: bf16[B, T, 8, 16], %k, %v: bf16[B, T, 4, 16]) {
  %m = state.kv %k, %v {window = 512}
  %ctx = attn.attend %q, %m {scale = 0.25}
  return %ctx
}
// ERROR: error[RG033]: attn.attend: looks back all rows in a memory that keeps 512

// -----

graph @no_memory (%q: bf16[B, T, 8, 16], %k: bf16[B, T, 4, 16]) {
  %ctx = attn.attend %q, %k {scale = 0.25}
  return %ctx
}
// ERROR: error[RG010]: attn.attend: operand memory is bf16[B, T, 4, 16], expected memory<k Hkv D, v? Hkv Dv>

// -----

graph @queries_from_a_memory (%q: bf16[B, S@m, 8, 16], %k, %v: bf16[B, T, 4, 16]) {
  %m = state.kv %k, %v
  %ctx = attn.attend %q, %m {scale = 0.25}
  return %ctx
}
// ERROR: error[RG035]: attn.attend: runs along S@m; memories are made and read along T only

// -----

graph @widths_differ (%q: bf16[B, T, 8, 32], %k, %v: bf16[B, T, 4, 16]) {
  %m = state.kv %k, %v
  %ctx = attn.attend %q, %m {scale = 0.25}
  return %ctx
}
// ERROR: error[RG010]: attn.attend: operand memory is memory<bf16; k [4, 16], v [4, 16]>, expected memory<k Hkv D, v? Hkv Dv>

// -----

graph @dtypes_differ (%q: f32[B, T, 8, 16], %k, %v: bf16[B, T, 4, 16]) {
  %m = state.kv %k, %v
  %ctx = attn.attend %q, %m {scale = 0.25}
  return %ctx
}
// ERROR: error[RG034]: attn.attend: f32 queries, bf16 memory

// -----

graph @an_empty_window (%q: bf16[B, T, 8, 16], %k, %v: bf16[B, T, 4, 16]) {
  %m = state.kv %k, %v
  %ctx = attn.attend %q, %m {scale = 0.25, window = 0}
  return %ctx
}
// ERROR: error[RG034]: attn.attend: window 0

// -----

graph @a_sink_for_other_heads (%q: bf16[B, T, 8, 16], %k, %v: bf16[B, T, 4, 16], %s: bf16[4]) {
  %m = state.kv %k, %v
  %ctx = attn.attend %q, %m, sink=%s {scale = 0.25}
  return %ctx
}
// ERROR: error[RG010]: attn.attend: operand sink is bf16[4], expected float[Hq]

// -----

graph @a_cap_of_nothing (%q: bf16[B, T, 8, 16], %k, %v: bf16[B, T, 4, 16]) {
  %m = state.kv %k, %v
  %ctx = attn.attend %q, %m {scale = 0.25, softcap = 0.0}
  return %ctx
}
// ERROR: error[RG034]: attn.attend: softcap is 0.0

// -----

graph @entries_of_another_width (%q: bf16[B, T, 8, 16], %k, %v: bf16[B, T, 4, 16], %l: bf16[B, T, 4, 8]) {
  %m = state.kv %k, %v
  %n = state.kv %k, %l
  %ctx = attn.attend %q, %m, entries=%n {scale = 0.25}
  return %ctx
}
// ERROR: error[RG010]: attn.attend: operand entries is memory<bf16; k [4, 16], v [4, 8]>, expected memory<k Hkv D, v? Hkv Dv>

// -----

graph @entries_of_a_window (%q: bf16[B, T, 8, 16], %k, %v: bf16[B, T, 4, 16]) {
  %m = state.kv %k, %v
  %n = state.kv %k, %v {window = 4}
  %ctx = attn.attend %q, %m, entries=%n {scale = 0.25}
  return %ctx
}
// ERROR: error[RG034]: attn.attend: memory<bf16; k [4, 16], v [4, 16]; window 4> beside memory<bf16; k [4, 16], v [4, 16]>

// -----

graph @first_rows_that_went (%q: bf16[B, T, 8, 16], %k, %v: bf16[B, T, 4, 16]) {
  %m = state.kv %k, %v {window = 512, first = 2} : memory<bf16; k [4, 16], v [4, 16]; window 512, first 2>
  %ctx = attn.attend %q, %m {scale = 0.25, window = 512, first = 4}
  return %ctx
}
// ERROR: error[RG034]: attn.attend: first 4 rows, window 512, of memory<bf16; k [4, 16], v [4, 16]; window 512, first 2>

// -----

graph @disjoint (%q: bf16[B, T, 8, 16], %k, %v: bf16[B, T, 4, 16], %x: bf16[B, T, 128]) {
  %bias = weight.load : f32[8, 128]
  %near = state.kv %k, %v {window = 64, first = 16}
  %m = state.compressed %x, %bias {rate = 8} : memory<bf16; x [128]; every 8>
  %rows = mem.read %m
  %k_part = core.slice %rows {start = 0, stop = 64}
  %v_part = core.slice %rows {start = 64, stop = 128}
  %keys = core.unflatten %k_part {parts = 4}
  %values = core.unflatten %v_part {parts = 4}
  %far = mem.view %m, %keys, v=%values : memory<bf16; k [4, 16], v [4, 16]; every 8>
  %ctx = attn.attend %q, %near, entries=%far {scale = 0.25, window = 64, first = 16, disjoint = true, entries_bias = 2.0794415416798357} : bf16[B, T, 8, 16]
  return %ctx
}

// -----

graph @blocks_longer_than_the_window (%q: bf16[B, T, 8, 16], %k, %v: bf16[B, T, 4, 16], %x: bf16[B, T, 128]) {
  %bias = weight.load : f32[8, 128]
  %near = state.kv %k, %v {window = 6}
  %m = state.compressed %x, %bias {rate = 8}
  %rows = mem.read %m
  %k_part = core.slice %rows {start = 0, stop = 64}
  %v_part = core.slice %rows {start = 64, stop = 128}
  %keys = core.unflatten %k_part {parts = 4}
  %values = core.unflatten %v_part {parts = 4}
  %far = mem.view %m, %keys, v=%values
  %ctx = attn.attend %q, %near, entries=%far {scale = 0.25, window = 6, disjoint = true}
  return %ctx
}
// ERROR: error[RG034]: attn.attend: window 6 and first 0 over entries of 8 tokens

// -----

graph @a_bias_of_no_entries (%q: bf16[B, T, 8, 16], %k, %v: bf16[B, T, 4, 16]) {
  %m = state.kv %k, %v
  %ctx = attn.attend %q, %m {scale = 0.25, entries_bias = 1.0}
  return %ctx
}
// ERROR: error[RG034]: attn.attend: disjoint or biased entries, and there are none
