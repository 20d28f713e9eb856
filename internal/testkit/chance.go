package testkit

import "math"

// ChiSquare says how far counts are from equal ones, and the most that fair dice come to in 99 of 100 throws (Wilson and Hilferty, 1931).
func ChiSquare(counts []int) (sum, limit float64) {
	total := 0
	for _, n := range counts {
		total += n
	}
	expected := float64(total) / float64(len(counts))
	for _, n := range counts {
		difference := float64(n) - expected
		sum += difference * difference / expected
	}
	degrees := float64(len(counts) - 1)
	return sum, degrees * math.Pow(1-2/(9*degrees)+2.326*math.Sqrt(2/(9*degrees)), 3)
}
