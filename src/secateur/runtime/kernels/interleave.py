"""Weaves the rows of a packed matrix two by two, as kernels read them: ir.py says how that looks.

`weave(values, bitmap, offsets, woven values, woven bitmap, rows, words, width)`: all but the last three are
addresses; `offsets` has the first value of each row, `rows` is even, `width` is the bytes of a value.
"""

MODULE = """
declare i64 @llvm.ctpop.i64(i64)
declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)

define void @weave(ptr %values, ptr %bitmap, ptr %offsets, ptr %out, ptr %bits, i64 %rows, i64 %words, i64 %width) {
entry:
  br label %pair
pair:
  %r = phi i64 [0, %entry], [%r_next, %pair_end]
  %out0 = phi ptr [%out, %entry], [%out_next, %pair_end]
  %bits0 = phi ptr [%bits, %entry], [%bits_next, %pair_end]
  %r1 = add i64 %r, 1
  %place0 = getelementptr i64, ptr %offsets, i64 %r
  %place1 = getelementptr i64, ptr %offsets, i64 %r1
  %offset0 = load i64, ptr %place0
  %offset1 = load i64, ptr %place1
  %skip0 = mul i64 %offset0, %width
  %skip1 = mul i64 %offset1, %width
  %first = getelementptr i8, ptr %values, i64 %skip0
  %second = getelementptr i8, ptr %values, i64 %skip1
  %word0 = mul i64 %r, %words
  %word1 = mul i64 %r1, %words
  %row0 = getelementptr i64, ptr %bitmap, i64 %word0
  %row1 = getelementptr i64, ptr %bitmap, i64 %word1
  br label %word
word:
  %i = phi i64 [0, %pair], [%i_next, %word]
  %v0 = phi ptr [%first, %pair], [%v0_next, %word]
  %v1 = phi ptr [%second, %pair], [%v1_next, %word]
  %o = phi ptr [%out0, %pair], [%out_next, %word]
  %from0 = getelementptr i64, ptr %row0, i64 %i
  %from1 = getelementptr i64, ptr %row1, i64 %i
  %b0 = load i64, ptr %from0
  %b1 = load i64, ptr %from1
  %twice = shl i64 %i, 1
  %to0 = getelementptr i64, ptr %bits0, i64 %twice
  %to1 = getelementptr i64, ptr %to0, i64 1
  store i64 %b0, ptr %to0
  store i64 %b1, ptr %to1
  %count0 = call i64 @llvm.ctpop.i64(i64 %b0)
  %count1 = call i64 @llvm.ctpop.i64(i64 %b1)
  %bytes0 = mul i64 %count0, %width
  %bytes1 = mul i64 %count1, %width
  call void @llvm.memcpy.p0.p0.i64(ptr %o, ptr %v0, i64 %bytes0, i1 false)
  %between = getelementptr i8, ptr %o, i64 %bytes0
  call void @llvm.memcpy.p0.p0.i64(ptr %between, ptr %v1, i64 %bytes1, i1 false)
  %out_next = getelementptr i8, ptr %between, i64 %bytes1
  %v0_next = getelementptr i8, ptr %v0, i64 %bytes0
  %v1_next = getelementptr i8, ptr %v1, i64 %bytes1
  %i_next = add i64 %i, 1
  %more_words = icmp ult i64 %i_next, %words
  br i1 %more_words, label %word, label %pair_end
pair_end:
  %wide = shl i64 %words, 1
  %bits_next = getelementptr i64, ptr %bits0, i64 %wide
  %r_next = add i64 %r, 2
  %more = icmp ult i64 %r_next, %rows
  br i1 %more, label %pair, label %done
done:
  ret void
}
"""
