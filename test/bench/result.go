package main

import (
	"cmp"
	"math"
	"slices"
)

// percentiles are those of [result.Latency], which has the maximum after them.
var percentiles = [...]float64{50, 90, 99, 99.9}

// times are latencies in milliseconds at [percentiles], then the maximum.
type times [len(percentiles) + 1]float64

// result is one round of one lane.
type result struct {
	// Accepted and EndToEnd are events per second: those answered 2xx, and those
	// whose call arrived; the latter from when calls could be made.
	Accepted float64 `json:"accepted_per_second"`
	EndToEnd float64 `json:"end_to_end_per_second"`
	// Latency is from sending the event to the first arrival of its call,
	// Answer from sending to the producer's answer.
	Latency times `json:"latency_ms"`
	Answer  times `json:"answer_ms"`
	// Lost were accepted and never arrived, Duplicated arrived again, Refused
	// were not answered 2xx, Foreign is what arrived and was never sent so.
	Lost       int `json:"lost"`
	Duplicated int `json:"duplicated"`
	Refused    int `json:"refused"`
	Foreign    int `json:"altered"`
	// CPU is the process's user and system time in seconds per 1,000 events of
	// all lanes, PeakMiB its peak resident memory; 0 where the system does not
	// tell. WaitingMiB is its resident memory, DiskMiB the size of its files,
	// while the function hung and all events were accepted.
	CPU        float64 `json:"cpu_seconds_per_1000"`
	PeakMiB    float64 `json:"peak_memory_mib"`
	WaitingMiB float64 `json:"waiting_memory_mib,omitempty"`
	DiskMiB    float64 `json:"waiting_disk_mib,omitempty"`
	// Others is the part of all cores that programs outside the measurement
	// took meanwhile.
	Others float64 `json:"others_share"`
	// Function is the mean time a slow function took, in milliseconds.
	Function float64 `json:"function_ms,omitempty"`
}

// timesOf sorts ns, latencies in nanoseconds.
func timesOf(ns []int64) (t times) {
	if len(ns) == 0 {
		return t
	}
	slices.Sort(ns)
	for i, p := range percentiles {
		rank := int(math.Ceil(p*float64(len(ns))/100 - 1e-9)) // nearest rank, whatever 99.9 is in binary
		t[i] = float64(ns[max(rank, 1)-1]) / 1e6
	}
	t[len(percentiles)] = float64(ns[len(ns)-1]) / 1e6
	return t
}

// typicalOf is the round with the median end-to-end rate; what must not happen
// at all is added up.
func typicalOf(rs []result) result {
	sorted := slices.SortedFunc(slices.Values(rs), func(a, b result) int { return cmp.Compare(a.EndToEnd, b.EndToEnd) })
	r := sorted[len(sorted)/2]
	r.Lost, r.Duplicated, r.Refused, r.Foreign = 0, 0, 0, 0
	for _, x := range rs {
		r.addFaults(x)
	}
	return r
}

func (r *result) addFaults(x result) {
	r.Lost += x.Lost
	r.Duplicated += x.Duplicated
	r.Refused += x.Refused
	r.Foreign += x.Foreign
}

func median(v []float64) float64 {
	s := slices.Sorted(slices.Values(v))
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}
