//! `GetContainerEvents`: the order in which things are told.

use podwright_tests::{Deadline, Node, Outcome, PodBuilder, v1};

#[test]
fn a_life_is_told_in_order() -> Outcome {
    let node = Node::start()?;
    let listener = node.client()?;
    let mut events = listener.subscribe()?;
    let pod = PodBuilder::new(&node, "events").run(&node)?;
    let container = pod.sh("exit 6").start()?;
    container.wait()?;
    container.remove()?;
    let mut told = Vec::new();
    while told.last() != Some(&v1::ContainerEventType::ContainerDeletedEvent) {
        let event = events.next(Deadline::in_seconds(20))?;
        if event.container_id == container.id {
            if event.container_event_type() == v1::ContainerEventType::ContainerStoppedEvent {
                let status = event.containers_statuses.iter().find(|status| status.id == container.id);
                assert_eq!(
                    status.map(|status| status.exit_code),
                    Some(6),
                    "the status is already the exited one"
                );
            }
            assert_eq!(event.pod_sandbox_status.as_ref().map(|status| &status.id), Some(&pod.id));
            told.push(event.container_event_type());
        }
    }
    assert_eq!(
        told,
        [
            v1::ContainerEventType::ContainerCreatedEvent,
            v1::ContainerEventType::ContainerStartedEvent,
            v1::ContainerEventType::ContainerStoppedEvent,
            v1::ContainerEventType::ContainerDeletedEvent,
        ]
    );
    Ok(())
}
