"""The names that the parser and the interpreter share: opcodes, types, roundings, flags, special registers.

Written once. `cpp_header` gives the C++ side the same numbers, as the header names.h.
"""


def words(text: str) -> list[str]:
    """A table of names, written as a sentence."""
    return text.split()


OPCODES = words("""
    add sub mul mul_wide mul_hi mad mad_wide mad_hi fma div rem min max and or xor not shl shr neg abs copysign
    sqrt rsqrt rcp ex2 lg2 sin cos tanh brev clz popc bfind bfe bfi lop3 shf prmt
    mov pack unpack selp setp cvt cvt_pack cvta
    ld st atom ldmatrix stmatrix mma cp_async cp_async_commit cp_async_wait
    bar bar_warp fence fence_proxy shfl vote activemask redux elect
    wgmma wgmma_fence wgmma_commit wgmma_wait
    bra brx ret trap nop
""")
# "none" is the type of instructions that have no type.
TYPES = words("none b8 u8 s8 b16 u16 s16 f16 bf16 b32 u32 s32 f32 tf32 b64 u64 s64 f64 pred f16x2 bf16x2")
BYTES = {
    **dict.fromkeys(("b8", "u8", "s8"), 1),
    **dict.fromkeys(("b16", "u16", "s16", "f16", "bf16"), 2),
    **dict.fromkeys(("b32", "u32", "s32", "f32", "tf32", "f16x2", "bf16x2"), 4),
    **dict.fromkeys(("b64", "u64", "s64", "f64"), 8),
}
# rna: to nearest, ties away from zero. Those that end in i round to an integer. Their order counts: convert.h
# asks whether a rounding is rni or later.
ROUNDINGS = words("none rn rz rm rp rna rni rzi rmi rpi")
COMPARISONS = words("none eq ne lt le gt ge lo ls hi hs equ neu ltu leu gtu geu num nan")
SPACES = words("generic global shared param local const")
ATOMICS = words("add exch cas min max and or xor")
SHUFFLES = words("up down bfly idx")
VOTES = words("all any uni ballot")
COMBINATIONS = words("none and or xor")  # what setp does with its third operand

FLAGS = words("""
    ftz sat nan approx transpose transpose_a transpose_b uniform to_space right wrap shift_amount
    negate_product negate_addend negate_predicate wait_all async_proxy
""")

SPECIAL_REGISTERS = words("""
    tid.x tid.y tid.z ntid.x ntid.y ntid.z ctaid.x ctaid.y ctaid.z nctaid.x nctaid.y nctaid.z
    laneid warpid nwarpid lanemask_eq lanemask_lt lanemask_le lanemask_gt lanemask_ge
    cluster_ctaid.x cluster_ctaid.y cluster_ctaid.z cluster_nctaid.x cluster_ctarank clusterid.x dynamic_smem_size
""")

# What an instruction is to the interpreter: 32-bit numbers, then 64-bit ones. A register operand is a slot.
FIELDS_32 = {
    "opcode": "of OPCODES",
    "type": "of TYPES: of the result, unless the opcode says otherwise",
    "source_type": "of TYPES: what cvt reads; of the matrices a and b",
    "rounding": "of ROUNDINGS",
    "comparison": "of COMPARISONS",
    "flags": "a sum of FLAGS",
    "space": "of SPACES",
    "variant": "of ATOMICS, SHUFFLES, VOTES or COMBINATIONS, as the opcode has it",
    "elements": "registers of a vector access or of the result of a matrix product; bytes of a cp.async",
    "predicate": "the slot of the guard, -1 without one",
    "negated": "1 for the guard @!p",
    "first_operand": "index into the operands of the program",
    "operand_count": "how many of them",
    "target": "where a branch goes: an index of an instruction",
    "reconvergence": "where the two ways of a branch meet again; the number of instructions if nowhere",
    "rows": "m of a matrix product",
    "columns": "n",
    "depth": "k",
    "a_registers": "registers a lane holds of a; 0: a lies in shared memory",
    "b_registers": "... and of b",
}
FIELDS_64 = {
    "immediate": "bytes added to the address; groups that may stay open; the truth table of lop3",
    "destination_offset": "bytes added to the destination of a cp.async",
}
FLAG_BITS = {name: 1 << index for index, name in enumerate(FLAGS)}


def cpp_header(report_kinds: list[str]) -> str:
    """names.h: the tables above and the kinds of reports as C++ enumerations, and struct Instruction."""
    enumerations = {
        "Opcode": ("OP", OPCODES),
        "Type": ("TYPE", TYPES),
        "Rounding": ("ROUND", ROUNDINGS),
        "Comparison": ("CMP", COMPARISONS),
        "Space": ("SPACE", SPACES),
        "Atomic": ("ATOMIC", ATOMICS),
        "Shuffle": ("SHUFFLE", SHUFFLES),
        "Vote": ("VOTE", VOTES),
        "Combination": ("COMBINE", COMBINATIONS),
        "Special": ("SPECIAL", [name.replace(".", "_") for name in SPECIAL_REGISTERS]),
        "ReportKind": ("REPORT", report_kinds),
    }
    lines = ["// Written by instructions.py.", "#pragma once", "#include <cstdint>"]
    for enumeration, (prefix, names) in enumerations.items():
        lines.append(f"enum {enumeration} : int32_t {{ " + ", ".join(f"{prefix}_{name}" for name in names) + " };")
    lines.append("enum Flag : int32_t { " + ", ".join(f"FLAG_{k} = {v}" for k, v in FLAG_BITS.items()) + " };")
    lines.append("struct Instruction {")
    lines += [f"  int32_t {name};  // {meaning}" for name, meaning in FIELDS_32.items()]
    lines += [f"  int64_t {name};  // {meaning}" for name, meaning in FIELDS_64.items()]
    return "\n".join([*lines, "};", ""])
