// A page from a disk may not start a Worker, and the search runs in one. There a hidden frame
// stands in for it: the frame loads the worker's script, and messages are events in both windows.
if (location.protocol === "file:") {
  window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.append(frame);
      const inside = frame.contentWindow;
      const send = (target, Kind, data) => target.dispatchEvent(new Kind("message", { data }));
      inside.postMessage = (data) => send(this, MessageEvent, data);
      this.started = new Promise((resolve, reject) => {
        const script = inside.document.createElement("script");
        script.onload = resolve;
        script.onerror = reject;
        script.src = url;
        inside.document.head.append(script);
      });
      this.send = (data) => send(inside, inside.MessageEvent, data);
    }
    postMessage(data) {
      this.started.then(() => this.send(data));
    }
  };
  window.Worker = window.IFrameWorker;
}
