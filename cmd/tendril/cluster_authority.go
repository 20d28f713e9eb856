package main

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// authorityName is of the authority's ConfigMap, by the chart.
const authorityName = "tendril-authority"

// What the operator writes there beside the authority's certificate while it replaces it (docs/operator.md).
const (
	stageTold   = "told"   // stage 1
	stageIssues = "issues" // stage 2
)

// authorityStatus is the authority of the nodes' certificates, by its ConfigMap: the Secret, which has the key, is not read.
type authorityStatus struct {
	GoodUntil *time.Time `json:"good_until"` // of the one that issues; null: it is not there yet
	Stage     string     `json:"stage"`      // of its replacement: told, issues; empty: there is none
	StageEnds *time.Time `json:"stage_ends"` // when the next stage begins; null: there is none, or nobody knows yet
	problem   string     // why the Secret cannot be used
	missing   string     // what keeps agents from their certificates
}

func (c *cluster) authority(ctx context.Context, namespace string, now time.Time) (*authorityStatus, error) {
	held, err := get[corev1.ConfigMap](ctx, c, corev1.SchemeGroupVersion.WithKind("ConfigMap"), namespace, authorityName)
	if apierrors.IsNotFound(err) {
		return nil, nil // installed by an earlier release, or otherwise than by the chart
	}
	if err != nil {
		return nil, err
	}
	s := &authorityStatus{Stage: held.Data["stage"], problem: held.Data["problem"]}
	if ends, err := time.Parse(time.RFC3339, held.Data["stage-ends"]); err == nil {
		s.StageEnds = &ends
	}
	// They stand in the order in which they issue.
	certificates := certificatesIn(held.Data["ca.crt"])
	switch n := len(certificates); {
	case n == 0:
		s.missing = fmt.Sprintf("the operator has put no certificate into ConfigMap %s yet, and agents wait for it: see `kubectl -n %s logs deployment/%s`", authorityName, namespace, operatorName)
	case s.Stage == stageIssues:
		s.GoodUntil = &certificates[n-1].NotAfter
	default:
		s.GoodUntil = &certificates[0].NotAfter
	}
	if s.GoodUntil != nil && !now.Before(*s.GoodUntil) {
		s.missing = fmt.Sprintf("its certificate has %s: see `kubectl -n %s logs deployment/%s`", certificateText(*s.GoodUntil, now), namespace, operatorName)
	}
	return s, nil
}

func certificatesIn(text string) (all []*x509.Certificate) {
	for block, rest := pem.Decode([]byte(text)); block != nil; block, rest = pem.Decode(rest) {
		if certificate, err := x509.ParseCertificate(block.Bytes); err == nil {
			all = append(all, certificate)
		}
	}
	return all
}

// authorityText says for how long the authority is good, or how far its replacement is.
func authorityText(s *authorityStatus, now time.Time) string {
	if s.GoodUntil == nil {
		return "none yet"
	}
	due := s.StageEnds != nil && !now.Before(*s.StageEnds) // replicas look every 45 seconds
	switch s.Stage {
	case "":
		return certificateText(*s.GoodUntil, now)
	case stageTold:
		next := "some time after"
		if due {
			next = "within a minute"
		} else if s.StageEnds != nil {
			next = fmt.Sprintf("from %s, in %s", s.StageEnds.UTC().Format(time.RFC3339), ago(s.StageEnds.Sub(now)))
		}
		return "being replaced, stage 1 of 3: agents learn of the next one, which issues " + next
	case stageIssues:
		end := "for now"
		if due {
			end = "for less than a minute"
		} else if s.StageEnds != nil {
			end = certificateText(*s.StageEnds, now)
		}
		return "being replaced, stage 2 of 3: the next one issues, and the one before is believed " + end
	}
	return fmt.Sprintf("being replaced, stage %q", s.Stage) // an operator of a later version may have others
}
