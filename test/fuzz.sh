#!/bin/bash
# fuzz.sh TIME PAIRS: fuzzes each fuzz target of the module for TIME; a failing input stays in the package's testdata. Then
# asks the compiler and the kernel about PAIRS random pairs of policies and a packet each, compares with the reference,
# and hammers the datapath with ten times the verdicts of make test.
set -euo pipefail
grep -rlE '^func Fuzz[A-Z]' --include='*_test.go' . | xargs -n1 dirname | sort -u | while read -r package; do
	grep -hoE '^func Fuzz[A-Za-z0-9_]+' "$package"/*_test.go | sed 's/^func //' | while read -r target; do
		echo "fuzz $package $target for $1"
		go test -run '^$' -fuzz "^$target\$" -fuzztime "$1" -fuzzminimizetime 5x "$package" < /dev/null
	done
done
echo "hammer the datapath with 100 million verdicts while rule sets change"
go test -count=1 -v -run '^TestRuleSetsThatSayTheSame' ./test/differential -verdicts=100000000
for test in WhatIsCompiled WhatTheKernelDoes; do
	echo "differential $test, $2 pairs"
	go test ./test/differential -count=1 -timeout 0 -run "^TestObjectsMean$test\$" -v -pairs "$2" | grep -vE 'passed [0-9]+ tests'
done
