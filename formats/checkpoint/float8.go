package checkpoint

import "math"

// Values of the narrow floats of the OCP's 8-bit and microscaling specifications, by their bits.
var (
	e4m3 = table(4, 3)
	e5m2 = table(5, 2)
	e8m0 = powers()
	// fp4 is E2M1: a sign, and 0, ½, 1, 1½, 2, 3, 4 or 6.
	fp4 = [16]float32{0, 0.5, 1, 1.5, 2, 3, 4, 6, float32(math.Copysign(0, -1)), -0.5, -1, -1.5, -2, -3, -4, -6}
)

// table lists the floats of a sign, exponent bits and mantissa bits. E5M2's largest exponent is that of infinity and NaN as
// in IEEE 754, E4M3 has NaN alone, at the largest mantissa of it.
func table(exponent, mantissa int) (t [256]float32) {
	bias := 1<<(exponent-1) - 1
	for i := range t {
		e, m := i>>mantissa&(1<<exponent-1), i&(1<<mantissa-1)
		fraction := float64(m) / float64(int(1)<<mantissa)
		v := math.Ldexp(1+fraction, e-bias)
		switch top := e == 1<<exponent-1; {
		case e == 0:
			v = math.Ldexp(fraction, 1-bias)
		case top && exponent == 5 && m == 0:
			v = math.Inf(1)
		case top && (exponent == 5 || m == 1<<mantissa-1):
			v = math.NaN()
		}
		if i>>7 == 1 {
			v = math.Copysign(v, -1)
		}
		t[i] = float32(v)
	}
	return t
}

// powers lists 2^(i-127); the last is NaN.
func powers() (t [256]float32) {
	for i := range t {
		t[i] = float32(math.Ldexp(1, i-127))
	}
	t[255] = float32(math.NaN())
	return t
}
