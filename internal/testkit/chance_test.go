package testkit

import (
	"math"
	"testing"
)

func TestChiSquare(t *testing.T) {
	sum, limit := ChiSquare([]int{90, 110, 100})
	if math.Abs(sum-2) > 1e-9 || math.Abs(limit-9.21) > 0.05 { // the table of the distribution has 9.210 for two degrees
		t.Errorf("got %.3f of at most %.3f, want 2 of about 9.21", sum, limit)
	}
	if sum, limit := ChiSquare([]int{0, 300}); sum <= limit {
		t.Errorf("one side of a coin only: %.1f of at most %.1f", sum, limit)
	}
}
