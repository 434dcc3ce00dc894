from elev_ssl_jax.forecast import hlo

PROGRAM = """HloModule jit_step

%body.1 (x: f32[8]) -> f32[8] {
  %a = f32[8,4]{1,0} fusion(%x), kind=kLoop, calls=%inner, metadata={op_name="jit(step)/encoder/add"}, backend_config={"window_config":{"estimated_cycles":"100"}}
  ROOT %g = bf16[2,3]{1,0} all-gather(%a), channel_id=7, metadata={op_name="jit(step)/loss/while/body/dot"}
}

%piece.1 (p: f32[2]) -> f32[4] {
  %g.1 = f32[4]{0} all-gather(%p), channel_id=9, metadata={op_name="jit(step)/loss/dot"}
}

%piece.2 (p: f32[2]) -> f32[4] {
  ROOT %g.2 = f32[4]{0} all-gather(%p), channel_id=9, metadata={op_name="jit(step)/loss/dot"}
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %w = (s32[], f32[8]) while(%t), condition=%cond, body=%body.1, metadata={op_name="jit(step)/loss/while"}, backend_config={"known_trip_count":{"n":"5"}}
  %s = (s32[], f32[8]) while(%t), condition=%cond, body=%other, metadata={op_name="jit(step)/views/gather"}
  %f.1 = f32[4]{0} fusion(%w), kind=kCustom, calls=%piece.1, backend_config={"estimated_cycles":"10"}
  %f.2 = f32[4]{0} fusion(%f.1), kind=kCustom, calls=%piece.2, backend_config={"estimated_cycles":"20"}
  %h = (f32[4]{0}, f32[16]{0}) all-gather-start(%f.2), channel_id=3
  %p = (f32[6]{0}, f32[6]{0}, u32[], u32[]) collective-permute-start(%f.2), channel_id=4
  ROOT %r = (f32[3]{0:T(128)}, u16[5]) all-reduce-start(%f.2), channel_id=2, metadata={op_name="jit(step)/encoder/bn1/reduce_sum"}
}
"""  # noqa: E501


def test_loops_count_as_often_as_they_go_round():
    found = {i.name: i for i in hlo.instructions(PROGRAM)}
    assert (found["a"].cycles, found["a"].times, found["a"].bytes) == (100, 5, 8 * 4 * 4)
    assert sum(i.cycles * i.times for i in found.values()) == 5 * 100 + 10 + 20
    assert found["a"].scope == "jit(step)/encoder/add"
    loops = hlo.loops(PROGRAM)
    assert [(loop.scope, loop.times) for loop in loops] == [
        ("jit(step)/loss/while", 5),
        ("jit(step)/views/gather", None),
    ]


def test_pieces_of_one_exchange_are_one():
    found = hlo.collectives(PROGRAM)
    assert [(i.kind, i.channel, i.times, i.bytes) for i in found] == [
        ("all-gather", 7, 5, 12),
        ("all-gather", 9, 1, 16),
        ("all-gather", 3, 1, 64),  # not its operand, which is named beside it
        ("collective-permute", 4, 1, 24),
        ("all-reduce", 2, 1, 12 + 10),
    ]
