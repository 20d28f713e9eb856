package operator

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/metadata"
	clienttesting "k8s.io/client-go/testing"
	"pgregory.net/rapid"

	"tendril.io/tendril/api/tendril"
	"tendril.io/tendril/internal/identity"
	"tendril.io/tendril/internal/label"
)

// identityStage is an operator, an API server that has identities, and time that passes at once.
type identityStage struct {
	*cluster
	mu     sync.Mutex
	has    map[types.NamespacedName]tendril.Identity
	did    []string // what was written, in order
	when   []time.Time
	lists  int
	hidden error // of every list
	refuse error // every write
	log    bytes.Buffer
}

// identityStory prepares the stage; the operator starts with run.
func identityStory(t *testing.T, story func(*identityStage), objects ...runtime.Object) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := &identityStage{cluster: prepare(t, objects...), has: map[types.NamespacedName]tendril.Identity{}}
		s.config.Logger = slog.New(slog.NewTextHandler(&s.log, nil))
		s.config.Metadata = identityNames{stage: s}
		for _, verb := range []string{"patch", "delete"} {
			s.objects.PrependReactor(verb, "identities", s.write)
		}
		story(s)
	})
}

// identityNames lists the identities of a stage in pages. client-go's fake client knows of none.
type identityNames struct {
	metadata.Getter
	stage *identityStage
}

func (n identityNames) Resource(schema.GroupVersionResource) metadata.Getter { return n }

func (n identityNames) List(_ context.Context, options metav1.ListOptions) (*metav1.PartialObjectMetadataList, error) {
	s := n.stage
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lists++; s.hidden != nil {
		return nil, s.hidden
	}
	names := slices.SortedFunc(maps.Keys(s.has), func(a, b types.NamespacedName) int { return strings.Compare(a.String(), b.String()) })
	first, _ := strconv.Atoi(options.Continue)
	end := min(first+int(options.Limit), len(names))
	page := &metav1.PartialObjectMetadataList{}
	if end < len(names) {
		page.Continue = strconv.Itoa(end)
	}
	for _, name := range names[first:end] {
		page.Items = append(page.Items, metav1.PartialObjectMetadata{ObjectMeta: s.has[name].ObjectMeta})
	}
	return page, nil
}

// write does what a server does with what is applied and deleted.
func (s *identityStage) write(action clienttesting.Action) (bool, runtime.Object, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	name := types.NamespacedName{Namespace: action.GetNamespace()}
	s.when = append(s.when, time.Now())
	switch action := action.(type) {
	case clienttesting.PatchActionImpl:
		name.Name = action.Name
		s.did = append(s.did, "apply "+name.String())
		object := tendril.Identity{}
		if err := json.Unmarshal(action.Patch, &object); err != nil || action.PatchType != types.ApplyPatchType || action.PatchOptions.FieldManager != fieldManager {
			s.t.Errorf("patch %s of %+v: %v", action.Patch, action.PatchOptions, err)
		}
		if s.refuse == nil {
			s.has[name] = object
		}
		return true, &unstructured.Unstructured{Object: map[string]any{}}, s.refuse
	case clienttesting.DeleteActionImpl:
		name.Name = action.Name
		s.did = append(s.did, "delete "+name.String())
		if _, has := s.has[name]; !has {
			return true, nil, apierrors.NewNotFound(identityResource.GroupResource(), name.Name)
		}
		if s.refuse == nil {
			delete(s.has, name)
		}
		return true, nil, s.refuse
	}
	s.t.Errorf("%s %s", action.GetVerb(), action.GetResource())
	return true, nil, nil
}

// refusing has every write refused from now on, or none.
func (s *identityStage) refusing(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refuse = err
}

// listed is how often somebody began to list.
func (s *identityStage) listed() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lists
}

// named is the identity of pods of the namespace shop with labels, which are pairs.
func named(labels ...string) string {
	set := map[string]string{}
	for i := 0; i < len(labels); i += 2 {
		set[labels[i]] = labels[i+1]
	}
	return "shop/" + identity.Of("default", "shop", "default", label.SetOf(set)).String()
}

// put makes an object that is there before the operator.
func (s *identityStage) put(name string, labels map[string]string) {
	namespace, name, _ := strings.Cut(name, "/")
	s.has[types.NamespacedName{Namespace: namespace, Name: name}] = tendril.Identity{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: labels}}
}

// after lets time pass, and wants these to have been written since it was last asked, in any order.
func (s *identityStage) after(d time.Duration, what string, want ...string) {
	s.t.Helper()
	time.Sleep(d)
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	slices.Sort(s.did)
	slices.Sort(want)
	if diff := cmp.Diff(want, s.did); diff != "" {
		s.t.Errorf("%s (-want +got):\n%s", what, diff)
	}
	s.did, s.when = nil, nil
}

// create has a pod made.
func (s *identityStage) create(pod *corev1.Pod) {
	s.t.Helper()
	if _, err := s.in("pods", pod.Namespace).Create(s.t.Context(), raw(s.t, pod), metav1.CreateOptions{}); err != nil {
		s.t.Fatal(err)
	}
}

// podOf has another set of labels than the rest.
func podOf(name, app string) *corev1.Pod {
	p := pod(name)
	p.Labels = map[string]string{"app": app}
	return p
}

func TestAnIdentityIsThereForAsLongAsAPodHasIt(t *testing.T) {
	of := pod("a")
	of.Labels["tier"], of.Spec.ServiceAccountName = "back", "baker"
	identityStory(t, func(s *identityStage) {
		s.run()
		id := identity.Of("default", "shop", "baker", label.SetOf(of.Labels)).String()
		s.after(5*time.Second, "a pod", "apply shop/"+id)
		want := map[types.NamespacedName]tendril.Identity{{Namespace: "shop", Name: id}: {
			TypeMeta:   metav1.TypeMeta{APIVersion: tendril.APIVersion, Kind: tendril.KindIdentity},
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: id, Labels: of.Labels},
			Spec:       tendril.IdentitySpec{Cluster: "default", ServiceAccount: "baker", Labels: of.Labels},
		}}
		if diff := cmp.Diff(want, s.has); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		second := of.DeepCopy()
		second.Name = "b"
		s.create(second)
		s.after(time.Minute, "another with the same set")
		s.remove("pods", "shop", "a")
		s.after(5*time.Minute, "one of them is gone")
		s.remove("pods", "shop", "b")
		s.after(50*time.Second, "both are gone")
		s.create(second)
		s.after(5*time.Minute, "it comes back within the grace")
		s.remove("pods", "shop", "b")
		s.after(50*time.Second, "it is gone again")
		s.after(15*time.Second, "for longer than the grace", "delete shop/"+id)
		s.after(time.Hour, "nothing happens")
		s.create(second)
		s.after(5*time.Second, "it comes back later", "apply shop/"+id)
	}, of)
}

func TestAPodThatIsRelabelledHasAnotherIdentity(t *testing.T) {
	identityStory(t, func(s *identityStage) {
		s.run()
		s.after(5*time.Second, "a pod", "apply "+named("app", "web"))
		s.update("pods", podOf("a", "other"))
		s.after(5*time.Second, "it has other labels", "apply "+named("app", "other"))
		s.after(2*time.Minute, "the grace is over", "delete "+named("app", "web"))
	}, pod("a"))
}

// Nor has one that waits for a node, or has ended: nothing comes from it.
func TestAPodInItsNodesNetworkHasNoIdentity(t *testing.T) {
	host, waiting, ended := podOf("host", "host"), podOf("waiting", "waiting"), podOf("ended", "ended")
	host.Spec.HostNetwork, waiting.Spec.NodeName, ended.Status.Phase = true, "", corev1.PodSucceeded
	bare := pod("bare")
	bare.Labels = nil
	identityStory(t, func(s *identityStage) {
		s.run()
		s.after(5*time.Second, "only the last has one, of no labels", "apply "+named())
	}, host, waiting, ended, bare)
}

func TestALeaderMendsWhatTheOneBeforeLeft(t *testing.T) {
	identityStory(t, func(s *identityStage) {
		s.put(named("app", "web"), map[string]string{"app": "web", "added": "by people"})
		s.put(named("app", "bare"), nil)
		s.put("else/where", nil)
		s.run()
		s.after(5*time.Second, "it leads", "apply "+named("app", "bare"), "apply "+named("app", "missing"))
		s.after(50*time.Second, "within the grace")
		s.after(10*time.Second, "after it", "delete else/where")
		s.after(time.Hour, "nothing happens")
		lists := s.listed()
		s.mu.Lock()
		clear(s.has)
		s.mu.Unlock()
		s.after(13*time.Minute, "somebody has deleted them", "apply "+named("app", "web"), "apply "+named("app", "bare"), "apply "+named("app", "missing"))
		if after := s.listed() - lists; lists > 9 || after == 0 {
			t.Errorf("listed %d times in an hour, and %d times after it", lists, after)
		}
	}, pod("a"), podOf("b", "bare"), podOf("c", "missing"))
}

func TestNothingIsRemovedWhileNobodyKnowsThePods(t *testing.T) {
	identityStory(t, func(s *identityStage) {
		s.put(named("app", "web"), map[string]string{"app": "web"})
		s.put(named("app", "gone"), map[string]string{"app": "gone"})
		var known sync.Map
		s.objects.PrependReactor("list", "pods", func(clienttesting.Action) (bool, runtime.Object, error) {
			if _, ok := known.Load("pods"); ok {
				return false, nil, nil
			}
			return true, nil, apierrors.NewTooManyRequestsError("busy")
		})
		s.run()
		s.after(time.Hour, "the server does not list pods")
		known.Store("pods", true)
		s.after(50*time.Second, "it does") // its reflector waits for up to a minute
		s.after(2*time.Minute, "the grace is over", "delete "+named("app", "gone"))
	}, pod("a"))
}

func TestANamespaceThatGoesIsNoFailure(t *testing.T) {
	gone := apierrors.NewNotFound(corev1.Resource("namespaces"), "shop")
	terminating := apierrors.NewForbidden(identityResource.GroupResource(), "x", errAway)
	terminating.ErrStatus.Details.Causes = []metav1.StatusCause{{Type: corev1.NamespaceTerminatingCause}}
	for _, refusal := range []error{terminating, gone} {
		identityStory(t, func(s *identityStage) {
			s.refusing(refusal)
			s.run()
			s.after(7*time.Minute, "it goes", "apply "+named("app", "web"))
			s.refusing(nil)
			s.after(10*time.Minute, "it is there again", "apply "+named("app", "web"))
			if strings.Contains(s.log.String(), "identities are not") {
				t.Errorf("logged %s", &s.log)
			}
		}, pod("a"))
	}
}

func TestAFailureIsToldOnceATryAndNotOnceAnObject(t *testing.T) {
	var pods []runtime.Object
	var want []string
	for i := range 10 {
		pods, want = append(pods, podOf(fmt.Sprint("p", i), fmt.Sprint(i))), append(want, "apply "+named("app", fmt.Sprint(i)))
	}
	identityStory(t, func(s *identityStage) {
		s.refusing(apierrors.NewInternalError(errAway))
		s.run()
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		s.refusing(nil)
		said := strings.Count(s.log.String(), "identities are not as they should be")
		if tries := len(s.did) / len(pods); said != tries || tries < 5 || tries > 25 {
			t.Errorf("said it %d times in %d tries, want each, and 5 to 25 of them in ten minutes", said, tries)
		}
		if !strings.Contains(s.log.String(), "10 of 10 not written, the last shop/") {
			t.Errorf("logged %s", &s.log)
		}
		s.did = nil
		s.after(2*time.Minute, "the server is well again", want...)
	}, pods...)
}

func TestWithoutIdentitiesThoseThatAreThereAreRemoved(t *testing.T) {
	identityStory(t, func(s *identityStage) {
		s.put(named("app", "web"), nil)
		s.put("else/where", nil)
		s.config.NoIdentities = true
		s.run()
		s.after(5*time.Second, "it leads", "delete "+named("app", "web"), "delete else/where")
		lists := s.listed()
		s.after(time.Hour, "nothing happens")
		if again := s.listed() - lists; again > 0 {
			t.Errorf("listed %d times when there was nothing any more", again)
		}
	}, pod("a"))
}

func TestWithoutIdentitiesAKindThatNobodyDefinedIsNoFailure(t *testing.T) {
	identityStory(t, func(s *identityStage) {
		s.hidden, s.config.NoIdentities = apierrors.NewNotFound(identityResource.GroupResource(), ""), true
		s.run()
		s.after(time.Hour, "nothing to remove")
		if lists := s.listed(); lists != 1 || strings.Contains(s.log.String(), "identities are not") {
			t.Errorf("listed %d times, want once; logged %s", lists, &s.log)
		}
	}, pod("a"))
}

// A look in between does not make it longer.
func TestTheGraceIsCountedFromTheLastPod(t *testing.T) {
	identityStory(t, func(s *identityStage) {
		s.config.IdentityGrace = time.Hour
		s.run()
		s.after(5*time.Second, "a pod", "apply "+named("app", "web"))
		s.remove("pods", "shop", "a")
		s.after(59*time.Minute, "within the grace")
		s.after(65*time.Second, "after it", "delete "+named("app", "web"))
		if lists := s.listed(); lists < 5 {
			t.Errorf("listed %d times, want it more often in an hour", lists)
		}
	}, pod("a"))
}

// What it costs is one write an identity, whatever the number of pods, and a request for each page.
func TestThousandsOfIdentitiesComeOneByOneAtTheirPace(t *testing.T) {
	const sets, left = 1000, 1100
	var pods []runtime.Object
	for i := range sets {
		pods = append(pods, podOf(fmt.Sprint("p", i), fmt.Sprint(i)), podOf(fmt.Sprint("q", i), fmt.Sprint(i)))
	}
	identityStory(t, func(s *identityStage) {
		for i := range left {
			s.put(fmt.Sprintf("else/%d", i), nil)
		}
		s.run()
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		if len(s.has) != sets || len(s.did) != sets+left || s.lists != 3 {
			t.Errorf("there are %d objects after %d writes and %d lists, want %d, %d, 3", len(s.has), len(s.did), s.lists, sets, sets+left)
		}
		for i, at := range s.when[identityWrites:] {
			if took := at.Sub(s.when[i]); took < identityPace*3/4 {
				t.Fatalf("%d writes within %v, want %v", identityWrites+1, took, identityPace*3/4)
			}
		}
		if took := s.when[len(s.when)-1].Sub(s.when[0]); took > (sets+left)/identityWrites*identityPace*5/4 {
			t.Errorf("it took %v", took)
		}
		s.did = nil
		s.create(podOf("late", "late"))
		for i := range 100 {
			s.create(podOf(fmt.Sprint("r", i), fmt.Sprint(i)))
		}
		s.after(2*time.Minute, "a hundred pods more, of which one has a new set", "apply "+named("app", "late"))
	}, pods...)
}

// The reference looks at all pods each time.
func TestWhatTurnsIsWhatPodsHave(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m, now, known := newMirror("default"), map[string]*corev1.Pod{}, map[types.NamespacedName]bool{}
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			name := fmt.Sprint("p", rapid.IntRange(0, 4).Draw(t, "pod"))
			p := podOf(name, fmt.Sprint(rapid.IntRange(0, 2).Draw(t, "set")))
			p.Spec.HostNetwork = rapid.IntRange(0, 3).Draw(t, "host") == 0
			now[name] = p
			fields, err := runtime.DefaultUnstructuredConverter.ToUnstructured(p)
			if err != nil {
				t.Fatal(err)
			}
			object := &unstructured.Unstructured{Object: fields}
			if rapid.Bool().Draw(t, "gone") {
				delete(now, name)
				object = nil
			}
			if err := m.update(reference{podKind, "shop/" + name}, object, map[string]proto.Message{}); err != nil {
				t.Fatal(err)
			}
			if rapid.Bool().Draw(t, "later") { // several are taken at once
				continue
			}
			for name, set := range m.turned {
				if known[name] = true; set == nil {
					delete(known, name)
				}
			}
			clear(m.turned)
			want := map[types.NamespacedName]bool{}
			for _, p := range now {
				if !p.Spec.HostNetwork {
					want[types.NamespacedName{Namespace: "shop", Name: strings.TrimPrefix(named("app", p.Labels["app"]), "shop/")}] = true
				}
			}
			if diff := cmp.Diff(want, known); diff != "" {
				t.Fatalf("(-want +got):\n%s", diff)
			}
		}
	})
}
