"""A ROS 2 node that remembers: pictures of /camera/image_raw go in, ~/question is answered on ~/answer.

ros2 run needs a package; `python3 examples/ros2_node.py --ros-args -p memory:=256MiB` does not.
"""

import json

import numpy as np
import rclpy
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image
from std_msgs.msg import String

from mosaic_edge import Engine

CHANNELS = {"rgb8": slice(0, 3), "bgr8": slice(2, None, -1)}


class Memory(Node):
    def __init__(self):
        super().__init__("mosaic_memory")
        memory = self.declare_parameter("memory", "64MiB").value
        self.period = 1.0 / self.declare_parameter("fps", 1.0).value
        self.session = Engine.load("mosaic-tiny").session(memory=memory)
        self.next = float("-inf")
        self.answers = self.create_publisher(String, "~/answer", 10)
        # Sensor QoS keeps the newest pictures: those that came while the model was busy are dropped by ROS.
        self.create_subscription(Image, "/camera/image_raw", self.see, qos_profile_sensor_data)
        self.create_subscription(String, "~/question", self.ask, 10)

    def see(self, message):
        seconds = message.header.stamp.sec + message.header.stamp.nanosec / 1e9
        if seconds < self.next:
            return
        rows = np.frombuffer(message.data, np.uint8).reshape(message.height, message.step)
        image = rows[:, : 3 * message.width].reshape(message.height, message.width, 3)
        self.session.append(np.ascontiguousarray(image[:, :, CHANNELS[message.encoding]]), seconds)
        self.next = seconds + self.period

    def ask(self, message):
        try:
            reply = self.session.ask(message.data)
            said = {"answer": reply.text, "evidence": [[m.start, m.end] for m in reply.evidence]}
        except ValueError as refused:
            said = {"error": str(refused)}
        self.answers.publish(String(data=json.dumps({"question": message.data, **said})))


def main():
    rclpy.init()
    node = Memory()
    try:
        rclpy.spin(node)
    finally:
        node.session.close()
        node.destroy_node()
        rclpy.try_shutdown()


if __name__ == "__main__":
    main()
